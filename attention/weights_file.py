"""Tuned weights of an inflated model as safetensors: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .forms import Form, InflationWeights
from .safe_files import read_json, read_safetensors, shown, write_safetensors

FORMAT, VERSION = "coherence inflation weights", "1"
SUFFIX = ".stam.safetensors"
MAX_BYTES = 4 * 2**30  # all layers of SDXL are 2.5 GB


class WeightsFileError(ValueError):
    """A file holds no weights of an inflated model; the text says why."""


def save(weights: InflationWeights, path: Path) -> None:
    """Write ``weights`` to ``path``, in their own type: a reader, or a crash, finds all of them or nothing."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "pack_version": pack_version(),
        "base": weights.base,
        "form": json.dumps(asdict(weights.form)),
        "steps": str(weights.steps),
        "frames": str(weights.frames),
    }
    write_safetensors(weights.tensors, metadata, path, MAX_BYTES)


def pack_version() -> str:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    return found[1] if found else "?"


def load(path: Path) -> InflationWeights:
    """The weights in the file ``path``; WeightsFileError says what is wrong with it."""
    try:
        metadata, tensors = read_safetensors(path, FORMAT, VERSION, MAX_BYTES)
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
    names = [each.name for each in fields(Form)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise WeightsFileError(f"form: expected an object with {', '.join(names)}, got {shown(content)}")
    hints = get_type_hints(Form)
    for name, value in content.items():
        _require_type(name, value, hints[name])
    return Form(**content)


def _require_type(name: str, value: Any, hint: Any) -> None:
    options = get_args(hint)
    fits = value in options if options else type(value) is hint
    if not fits or (hint is int and not 1 <= value <= 64):
        expected = f"one of {', '.join(options)}" if options else f"{hint.__name__}"
        raise WeightsFileError(f"form: {name}: expected {expected}, got {shown(value)}")
