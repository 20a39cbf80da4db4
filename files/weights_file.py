"""Tuned weights of an inflated model as safetensors: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..attention.forms import Form, FrameAttention, InflationWeights, Module
from ..attention.inflation import Position
from ..techniques.stam import Norm
from .json_forms import ExactForm, fitted, read_json, shown
from .tensor_file import TensorFormat

SUFFIX = ".stam.safetensors"
MAX_BYTES = 4 * 2**30  # all layers of SDXL are 2.5 GB
FORMAT = TensorFormat("coherence inflation weights", "1", MAX_BYTES)


class WeightsFileError(ValueError):
    """A file holds no weights of an inflated model; the text says why."""


class InflationForm(ExactForm):
    """All that the weights were tuned with."""

    module: Module
    position: Position
    frame_attention: FrameAttention
    pool: Annotated[int, Field(ge=1, le=64)]
    norm: Norm
    ordered: bool


def save(weights: InflationWeights, path: Path) -> None:
    """Write ``weights`` to ``path``, in their own type: a reader, or a crash, finds all of them or nothing."""
    metadata = {
        "base": weights.base,
        "form": json.dumps(asdict(weights.form)),
        "steps": str(weights.steps),
        "frames": str(weights.frames),
    }
    FORMAT.write(weights.tensors, metadata, path)


def load(path: Path) -> InflationWeights:
    """The weights in the file ``path``; WeightsFileError says what is wrong with it."""
    try:
        metadata, tensors = FORMAT.read(path)
        if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
            raise WeightsFileError(f"{empty[0]}: expected numbers, got none")
        return InflationWeights(
            form=_read_form(metadata.get("form", "")),
            base=metadata.get("base", "?"),
            tensors=tensors,
            steps=_read_count(metadata, "steps"),
            frames=_read_count(metadata, "frames"),
        )
    except (OSError, ValueError) as error:
        raise WeightsFileError(f"{path.name} cannot be loaded: {error}. Choose a file that SaveSTAM wrote.") from error


def _read_count(metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise WeightsFileError(f"{name}: expected a whole number, got {shown(text)}")
    return int(text)


def _read_form(text: str) -> Form:
    try:
        content = read_json(text)
    except ValueError as error:
        raise WeightsFileError(f"form: {error}") from error
    return Form(**dict(fitted(InflationForm, content, "form")))
