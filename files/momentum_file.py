"""The momentum of a run as safetensors: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat

from ..techniques.kept import Momentum, RunFacts, name
from .json_forms import ExactForm, fitted, read_json, shown
from .tensor_file import TensorFormat

SUFFIX = ".momentum.safetensors"
MAX_BYTES, MAX_COUNT = 64 * 2**30, 2**31  # Flux at 1024 × 1024 and 20 steps: 57 GiB
FORMAT = TensorFormat("coherence momentum", "1", MAX_BYTES, header=16 * 2**20)  # an entry for each layer of each call
_Level = Annotated[FiniteFloat, Field(ge=0)]
_Levels = Annotated[list[_Level], Field(max_length=10_000)]


class MomentumFileError(ValueError):
    """A file holds no momentum; the text says why."""


class FactsForm(ExactForm):
    model: str
    latent: Annotated[list[Annotated[int, Field(ge=1, lt=MAX_COUNT)]], Field(max_length=4)]
    sigmas: _Levels
    conditionings: list[str]
    layers: list[str]

    def as_tuples(self) -> RunFacts:
        return RunFacts(
            self.model, tuple(self.latent), tuple(self.sigmas), tuple(self.conditionings), tuple(self.layers)
        )


class RunForm(ExactForm):
    """All but the tensors."""

    facts: FactsForm
    frame: Annotated[int, Field(ge=0, lt=MAX_COUNT)]
    levels: dict[str, _Levels]


def save(momentum: Momentum, path: Path) -> None:
    """Write ``momentum`` to ``path``, in its own type: a reader, or a crash, finds all of it or nothing."""
    run = {"facts": asdict(momentum.facts), "frame": momentum.frame, "levels": dict(momentum.levels)}
    FORMAT.write(momentum.tensors, {"run": json.dumps(run, ensure_ascii=False, allow_nan=False)}, path)


def load(path: Path) -> Momentum:
    """The momentum in the file ``path``; MomentumFileError says what is wrong with it."""
    try:
        metadata, tensors = FORMAT.read(path)
        run = _read_run(metadata.get("run", ""))
        calls = ((place, call) for place, levels in run.levels.items() for call in range(len(levels)))
        expected = {name(*call, part) for call in calls for part in "kv"}
        if odd := sorted(expected ^ tensors.keys()):
            raise MomentumFileError(f"expected K and V of every call that it tells, and no others: {shown(odd[0])}")
        if odd := [each for each, tensor in tensors.items() if tensor.ndim != 1 or not tensor.numel()]:
            shape = tuple(tensors[odd[0]].shape)
            raise MomentumFileError(f"{shown(odd[0])}: expected one row of numbers, got shape {shape}")
        levels = {place: tuple(sigmas) for place, sigmas in run.levels.items()}
        return Momentum(run.facts.as_tuples(), run.frame, levels, tensors)
    except (OSError, ValueError) as error:
        raise MomentumFileError(
            f"{path.name} cannot be loaded: {error}. Choose a file that SaveMomentum wrote."
        ) from error


def _read_run(text: str) -> RunForm:
    try:
        content = read_json(text)
    except ValueError as error:
        raise MomentumFileError(f"run: {error}") from error
    return fitted(RunForm, content, "run")
