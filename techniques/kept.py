"""What momentum attention keeps of a run for the next one: K̈ and V̈ of the last frame.

Every layer, branch and model call of a run has its own averages. A run that goes on from them must be like the run
that kept them: the same model, latent size, noise levels and conditionings. What differs is named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

_ALIKE = 1e-3
"""Of a latent's largest value: as far as a run's output and its last prediction, or its half precision, differ."""


class MomentumError(ValueError):
    """The momentum of another run does not fit this one, or there is none."""


@dataclass(frozen=True)
class RunFacts:
    """What a run and the one that goes on from it must have in common.

    ``model``: its class, dtype and fingerprints of its weights and LoRAs; ``latent``: the shape of one frame's;
    ``sigmas``: the noise levels; ``conditionings``: their names; ``layers``: the attention layers with momentum.
    """

    model: str
    latent: tuple[int, ...]
    sigmas: tuple[float, ...]
    conditionings: tuple[str, ...]
    layers: tuple[str, ...]

    def require_goes_on(self, kept: RunFacts) -> None:
        """MomentumError that names what this run does not share with the one that was ``kept``."""
        for field in fields(self):
            was, now = getattr(kept, field.name), getattr(self, field.name)
            alike = was == now if field.name != "sigmas" else _same_levels(was, now)
            if not alike:
                what, told = _WORDS[field.name]
                raise MomentumError(
                    f"previous was kept by another kind of run: {what} {told(was)}, in this run {told(now)}. Use the "
                    "same model, LoRAs, layers, latent size, steps, scheduler and number of prompts in both, or leave "
                    "previous empty. Nodes that only measure or invert need it empty."
                )


def _names(values: Sequence[str]) -> str:
    shown = [*values[:6], f"… ({len(values)} in all)"] if len(values) > 6 else values
    return ", ".join(shown) or "none"


def _levels(values: Sequence[float]) -> str:
    return f"{max(len(values) - 1, 0)} ({_names([f'{value:.4g}' for value in values])})"


def of_size(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


_WORDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("its model was", str),
    "latent": ("a frame's latent had the size", of_size),
    "sigmas": ("its steps were", _levels),
    "conditionings": ("its conditionings were", _names),
    "layers": ("its layers were", _names),
}


def _same_levels(some: Sequence[float], others: Sequence[float]) -> bool:
    return len(some) == len(others) and all(map(same_level, some, others))


def same_level(sigma: float, other: float) -> bool:
    return abs(sigma - other) <= 1e-4 * max(abs(sigma), abs(other))


@dataclass(frozen=True, eq=False)
class Momentum:
    """``frame``: the number of the last frame; ``levels``: by layer and branch (:func:`place`) the noise level of each
    model call; ``tensors``: by :func:`name` K̈ and V̈ there, one-dimensional, on the CPU, in the model's dtype."""

    facts: RunFacts
    frame: int
    levels: Mapping[str, tuple[float, ...]]
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def said(self) -> str:
        """For the log."""
        facts = self.facts
        return (
            f"momentum of frame {self.frame}, {len(facts.layers)} layers, {len(facts.sigmas) - 1} steps, "
            f"{facts.model}: {gibibytes(self.nbytes)} of RAM"
        )


def place(layer: str, branch: str) -> str:
    return f"{layer}/{branch}"


def name(place: str, call: int, part: str) -> str:
    """Of K̈ (``part`` k) or V̈ (v) at the ``call``-th model call, from 0."""
    return f"{place}/{call}/{part}"


def gibibytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


class KeptRuns:
    """What the runs of one patched model kept: of each sampler node its latest run that ended well."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, tuple[Tensor, Momentum]] = {}
        self._lock = threading.Lock()

    def forget(self, sampler: Hashable) -> None:
        """A sampler begins anew: what it kept makes room."""
        with self._lock:
            self._runs.pop(sampler, None)

    def put(self, sampler: Hashable, output: Tensor, momentum: Momentum) -> None:
        with self._lock:
            self._runs[sampler] = (output.detach().cpu().clone(), momentum)

    def of(self, latent: Tensor) -> Momentum:
        """Of the newest run whose output is ``latent``. MomentumError where no run's is."""
        with self._lock:
            runs = [*self._runs.values()]
        if not runs:
            raise MomentumError(
                "This model has kept no momentum: none of its runs has ended since it was patched, or the sampler ran "
                "with another model. Connect the model that the guider of this latent's sampler uses. If the sampler's "
                "result came from ComfyUI's cache, change its seed or free the cache, and queue again."
            )
        for output, momentum in reversed(runs):
            if output.shape == latent.shape and _is_alike(output, latent):
                return momentum
        raise MomentumError(
            f"latent is the output of none of the {len(runs)} latest runs of this model, so the run that it "
            "came from is unknown. Connect the sampler's output directly, before any node that changes it; if the same "
            "sampler has run again since, queue again."
        )


def _is_alike(output: Tensor, latent: Tensor) -> bool:
    there = latent.detach().to("cpu", torch.float32)
    output = output.float()
    return bool((output - there).abs().max() <= _ALIKE * output.abs().max())
