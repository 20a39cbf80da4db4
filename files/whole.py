"""Files that are written whole or not at all, and never read beyond a limit."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

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
        require_size(size_of(file), limit)
        return file.read(limit)


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def require_size(size: int, limit: int) -> None:
    """ValueError where ``size`` is over ``limit``."""
    if size > limit:
        raise ValueError(f"expected at most {limit:,} bytes, got {size:,}")
