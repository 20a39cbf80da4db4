"""Tuned weights of an inflated model as safetensors: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .forms import Form, InflationWeights

FORMAT, VERSION = "coherence inflation weights", "1"
SUFFIX = ".stam.safetensors"
TYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    write_whole(weights.tensors, metadata, path)


def write_whole(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file: a reader, or a crash, finds all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        save_file({name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def pack_version() -> str:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    return found[1] if found else "?"


def load(path: Path) -> InflationWeights:
    """The weights in the file ``path``; WeightsFileError says what is wrong with it."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise WeightsFileError(
                    f"expected the format {FORMAT!r}, version {VERSION}, got {metadata.get('format')!r}, version "
                    f"{metadata.get('version')!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        for name, tensor in tensors.items():
            if tensor.dtype not in TYPES:
                raise WeightsFileError(f"{name}: expected floating-point numbers, got {tensor.dtype}")
            if not tensor.isfinite().all():
                raise WeightsFileError(f"{name}: expected finite numbers, got NaN or infinity")
        return InflationWeights(
            form=_read_form(metadata.get("form", "")),
            base=metadata.get("base", "?"),
            tensors=tensors,
            steps=_read_count(metadata, "steps"),
            frames=_read_count(metadata, "frames"),
        )
    except (OSError, SafetensorError, WeightsFileError) as error:
        raise WeightsFileError(f"{path.name} cannot be loaded: {error}. Choose a file that SaveSTAM wrote.") from error


def _read_count(metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise WeightsFileError(f"{name}: expected a whole number, got {text[:40]!r}")
    return int(text)


def _read_form(text: str) -> Form:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"form: no JSON: {error}") from error
    names = [each.name for each in fields(Form)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise WeightsFileError(f"form: expected an object with {', '.join(names)}, got {text[:80]!r}")
    hints = get_type_hints(Form)
    for name, value in content.items():
        _require_type(name, value, hints[name])
    return Form(**content)


def _require_type(name: str, value: Any, hint: Any) -> None:
    options = get_args(hint)
    fits = value in options if options else type(value) is hint
    if not fits or (hint is int and not 1 <= value <= 64):
        expected = f"one of {', '.join(options)}" if options else f"{hint.__name__}"
        raise WeightsFileError(f"form: {name}: expected {expected}, got {str(value)[:40]!r}")
