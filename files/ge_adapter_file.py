"""GE-Adapters as safetensors: written whole or not at all, read with suspicion.

The LoRA's tensors have their usual names, so that ComfyUI's stock LoraLoader takes the file as a LoRA; it reports the
tokens as unused keys and passes over them.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..training.ge_adapter import GEAdapter, Option, Training
from ..training.low_rank import Layers
from .json_forms import ExactForm, fitted, read_json
from .tensor_file import TensorFormat

SUFFIX = ".ge_adapter.safetensors"
MAX_BYTES, MAX_COUNT = 2**30, 10**9
FORMAT = TensorFormat("coherence ge-adapter", "1", MAX_BYTES)
_SHARED = "ge_adapter.shared_tokens"
_WEIGHT, _BIAS = "ge_adapter.projection.weight", "ge_adapter.projection.bias"
_LORA = re.compile(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)")


class GEAdapterFileError(ValueError):
    """A file holds no GE-Adapter; the text says why."""


class TrainingForm(ExactForm):
    base: str
    layers: Layers
    frames: Annotated[int, Field(ge=1, lt=MAX_COUNT)]
    steps: Annotated[int, Field(ge=0, lt=MAX_COUNT)]
    options: dict[str, Option]


def save(adapter: GEAdapter, path: Path) -> None:
    """Write ``adapter`` to ``path``, in its own types: a reader, or a crash, finds all of it or nothing."""
    tensors = {**adapter.lora, _SHARED: adapter.shared_tokens}
    if adapter.projection is not None:
        tensors[_WEIGHT], tensors[_BIAS] = adapter.projection
    training = json.dumps(asdict(adapter.training), ensure_ascii=False, allow_nan=False)
    FORMAT.write(tensors, {"training": training}, path)


def load(path: Path) -> GEAdapter:
    """The adapter in the file ``path``; GEAdapterFileError says what is wrong with it."""
    try:
        metadata, tensors = FORMAT.read(path)
        return _assembled(tensors, _read_training(metadata.get("training", "")))
    except (OSError, ValueError) as error:
        raise GEAdapterFileError(
            f"{path.name} cannot be loaded: {error}. Choose a file that SaveGEAdapter wrote; for an ordinary LoRA use "
            "LoraLoader."
        ) from error


def _assembled(tensors: dict[str, Tensor], training: Training) -> GEAdapter:
    if _SHARED not in tensors or (_WEIGHT in tensors) != (_BIAS in tensors):
        raise GEAdapterFileError(f"expected {_SHARED}, and both or none of {_WEIGHT} and {_BIAS}")
    shared, weight, bias = (tensors.pop(name, None) for name in (_SHARED, _WEIGHT, _BIAS))
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise GEAdapterFileError(f"{empty[0]}: expected numbers, got none")
    if unknown := sorted(name for name in tensors if not _LORA.fullmatch(name)):
        raise GEAdapterFileError(f"unknown tensors: {', '.join(unknown[:3])}")
    assert shared is not None
    return GEAdapter(tensors, shared, None if weight is None or bias is None else (weight, bias), training)


def _read_training(text: str) -> Training:
    try:
        content = read_json(text)
    except ValueError as error:
        raise GEAdapterFileError(f"training: {error}") from error
    return Training(**dict(fitted(TrainingForm, content, "training")))
