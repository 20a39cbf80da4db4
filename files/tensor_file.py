"""Safetensors under limits of our own: what a file claims is checked before its tensors are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .json_forms import ExactForm, fitted, read_json, shown
from .whole import require_size, size_of, write_whole

Type = Literal["F32", "F16", "BF16"]
TYPES: dict[torch.dtype, Type] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MAX_HEADER = 4 * 2**20  # SDXL's whole LoRA has 0.2 MB
MAX_NAME, MAX_AXES, MAX_LENGTH = 200, 8, 2**31
_Length = Annotated[int, Field(ge=0, lt=MAX_LENGTH)]
_Offset = Annotated[int, Field(ge=0, lt=2**48)]


class _Entry(ExactForm):
    dtype: Type
    shape: Annotated[list[_Length], Field(max_length=MAX_AXES)]
    data_offsets: Annotated[list[_Offset], Field(min_length=2, max_length=2)]


_METADATA, _ENTRIES = TypeAdapter(dict[str, str]), TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class TensorFormat:
    """A kind of safetensors file, told by ``name`` and ``version`` in its metadata; ``limit``: its most bytes,
    ``header``: of its header."""

    name: str
    version: str
    limit: int
    header: int = MAX_HEADER

    def write(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
        """Write a file as :func:`.whole.write_whole` does; ValueError if :meth:`read` would refuse it."""
        # Not by safetensors' save_file: it orders the metadata by chance, so that no two saves are alike, takes the
        # file from all other users, and what it leaves when it is killed does not say whose it is.
        own = {"format": self.name, "version": self.version, "pack_version": pack_version()}
        header: dict[str, Any] = {"__metadata__": {**own, **metadata}}
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned for whoever maps it
        end = 0
        for name in names:
            start, end = end, end + tensors[name].nbytes
            dtype = TYPES.get(tensors[name].dtype, str(tensors[name].dtype))
            header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        require_size(8 + len(text) + end, self.limit)
        _require_length(len(text), self.header)
        _require_header(text)
        write_whole(chain([len(text).to_bytes(8, "little"), text], _bytes_of(tensors[name] for name in names)), path)

    def read(self, path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Metadata and tensors of a file of this kind: finite floating-point numbers.

        The tensors are copies: the file may change afterwards. ValueError for any other file, before its tensors are
        read where its header shows it.
        """
        with path.open("rb") as file:
            size = size_of(file)
            require_size(size, self.limit)
            length = int.from_bytes(file.read(8), "little")
            _require_length(length, min(size - 8, self.header))
            metadata, names = _require_header(file.read(length))
        if (metadata.get("format"), metadata.get("version")) != (self.name, self.version):
            raise ValueError(
                f"expected the format {self.name!r}, version {self.version}, got {shown(metadata.get('format'))}, "
                f"version {shown(metadata.get('version'))}"
            )
        try:
            with safe_open(path, "pt") as opened:
                tensors = {name: opened.get_tensor(name).clone() for name in names}
        except (SafetensorError, RuntimeError) as error:  # RuntimeError: no memory for it
            raise ValueError(f"not a complete safetensors file: {error}") from error
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        return metadata, tensors


def pack_version() -> str:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    return found[1] if found else "?"


def _bytes_of(tensors: Iterable[Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _require_length(length: int, most: int) -> None:
    if not 2 <= length <= most:
        raise ValueError(
            f"not a complete safetensors file: expected a header of at most {max(most, 0):,} bytes, got {length:,}"
        )


def _require_header(text: bytes) -> tuple[dict[str, str], list[str]]:
    """Metadata and the tensors' names. ValueError for what safetensors lets pass, or refuses without saying where."""
    try:
        header = read_json(text.decode())
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"header: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"header: expected an object, got {shown(header)}")
    metadata = fitted(_METADATA, header.pop("__metadata__", {}), "metadata")
    for name in header:
        if len(name) > MAX_NAME or not name.isprintable():
            raise ValueError(f"expected names of at most {MAX_NAME} printable characters, got {shown(name)}")
    fitted(_ENTRIES, header)
    return metadata, list(header)
