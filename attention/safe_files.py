"""Files that are written whole or not at all, and read with suspicion: what they claim is checked before it is read."""

from __future__ import annotations

import io
import json
import math
import os
import re
import reprlib
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER = 4 * 2**20  # SDXL's whole LoRA has 0.2 MB
MAX_NAME, MAX_AXES, MAX_LENGTH = 200, 8, 2**31
_PART = re.compile(r".+\.coherence-[0-9a-f]{32}\.part")
_LEFT_OVER = 3600.0
"""Seconds after which nobody writes any more to a file that should have been renamed."""


def write_whole(parts: Iterable[bytes], path: Path) -> None:
    """Write ``parts``, one after the other, to ``path``: a reader, or a crash, finds all or what was there before.

    What a killed process has left of such a write in the same folder is removed, once it is an hour old.
    """
    _sweep(path.parent)
    temporary = path.with_name(f"{path.name}.coherence-{uuid4().hex}.part")
    file = temporary.open("xb")
    try:
        with file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    for path in folder.glob("*.part"):
        with suppress(OSError):  # another process sweeps, too, or it is not ours to remove
            if _PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > _LEFT_OVER:
                path.unlink()


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of ``path``, at most ``limit``; ValueError where there are more."""
    with path.open("rb") as file:
        _require_size(_size(file), limit)
        return file.read(limit)


def read_json(text: str) -> Any:
    """The value that ``text`` is JSON of. ValueError also for what is no JSON to everyone: a name that occurs twice,
    NaN and infinity, half a surrogate pair, nesting without end."""
    try:
        content = json.loads(text, object_pairs_hook=_unique)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # also a number of too many digits
        raise ValueError(f"no JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("no JSON: nested too deeply") from error
    return content


def shown(value: Any) -> str:
    """The beginning of ``value``, for messages: short and printable, whatever it is."""
    text = _REPR.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def write_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path, limit: int) -> None:
    """Write a safetensors file as :func:`write_whole` does; ValueError if :func:`read_safetensors` would refuse it."""
    # Not by safetensors: what that leaves when it is killed says not whose it is, and no other user may read its files.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned for whoever maps it
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        kind = next((kind for kind, dtype in TYPES.items() if dtype == tensors[name].dtype), str(tensors[name].dtype))
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    _read_header(io.BytesIO(head), len(head) + end, limit)
    write_whole(chain([head], (_bytes(tensors[name]) for name in names)), path)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_safetensors(
    path: Path, expected_format: str, version: str, limit: int
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file whose metadata name this format and version: finite floating-point numbers.

    The tensors are copies: the file may change afterwards. ValueError for any other file, before its tensors are read
    where its header shows it.
    """
    with path.open("rb") as file:
        metadata, names = _read_header(file, _size(file), limit)
    if (metadata.get("format"), metadata.get("version")) != (expected_format, version):
        raise ValueError(
            f"expected the format {expected_format!r}, version {version}, got {shown(metadata.get('format'))}, version "
            f"{shown(metadata.get('version'))}"
        )
    try:
        with safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name).clone() for name in names}
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: no memory for it
        raise ValueError(str(error)) from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return metadata, tensors


def _read_header(file: BinaryIO, size: int, limit: int) -> tuple[dict[str, str], list[str]]:
    """Metadata and the tensors' names."""
    _require_size(size, limit)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise ValueError(
            f"no safetensors, or not all of it: expected a header of at most {min(max(size - 8, 0), MAX_HEADER):,} "
            f"bytes, got {length:,}"
        )
    try:
        header = read_json(file.read(length).decode())
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"header: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"header: expected an object, got {shown(header)}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"metadata: expected texts by name, got {shown(metadata)}")
    for name, entry in header.items():
        _require_tensor(name, entry, size)
    return metadata, list(header)


def _require_tensor(name: str, entry: Any, size: int) -> None:
    if len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"expected names of at most {MAX_NAME} printable characters, got {shown(name)}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets, got {shown(entry)}")
    if entry["dtype"] not in list(TYPES):  # a list: it may be anything, and need no hash
        raise ValueError(f"{name}: expected floating-point numbers ({', '.join(TYPES)}), got {shown(entry['dtype'])}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(offsets, size + 1) or len(offsets) != 2:
        raise ValueError(f"{name}: expected begin and end within {size:,} bytes, got {shown(offsets)}")
    if (
        not _are_counts(shape, MAX_LENGTH)
        or len(shape) > MAX_AXES
        or math.prod(shape) * TYPES[entry["dtype"]].itemsize > size
    ):
        raise ValueError(f"{name}: expected a shape that fits into {size:,} bytes, got {shown(shape)}")


def _are_counts(value: Any, end: int) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < end for each in value)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _require_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"expected at most {limit:,} bytes, got {size:,}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return content


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 40
