"""The rows of a model call are its branches times the clip's frames; nodes that cut pictures into tiles add more.

Such a node appends the same rows for several tiles. Code that needs to know which rows belong to which branch gets one
tile at a time instead: a whole group of branches × frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..techniques.branches import branches_of
from .chunks import of_frames
from .frames import told_frames
from .keys import ROWS


class RowsError(ValueError):
    """A model call has rows that are neither branches × frames nor whole groups of them."""


@contextmanager
def rows_told(options: dict[str, Any], noise: Tensor) -> Iterator[None]:
    """For the length of a run of ``noise``, model calls are told how many rows a branch has."""
    before = {ROWS: options[ROWS]} if ROWS in options else {}  # several of our wrappers are around one run
    options[ROWS] = None if noise.is_nested else len(noise)
    try:
        yield
    finally:
        del options[ROWS]
        options.update(before)


def groups_of(x: Tensor, options: dict[str, Any]) -> int:
    """How many times branches × frames the rows of ``x`` are. RowsError if they are more, and not a multiple."""
    expected, branches = options.get(ROWS), len(branches_of(options))
    if expected is None:
        return 1
    by_branch, rest = divmod(len(x), branches)
    window = [len(indices) for indices in told_frames(options)] if x.ndim == 4 else []
    if rest == 0:
        if by_branch in window or (not window and by_branch <= expected):
            return 1
        for frames in (*window, expected):
            if by_branch % frames == 0:
                return by_branch // frames
        if by_branch < expected:
            return 1
    raise RowsError(
        f"The model is called with {len(x)} rows for {branches} conditionings of {expected} frames each, expected "
        f"{branches * expected}: another node adds rows, such as tiles or reference pictures, so rows cannot be "
        "assigned to frames. Set its number of tiles per call to 1 (TiledDiffusion: tile_batch_size), or remove it."
    )


def in_groups(call: Callable[[tuple, dict], Tensor], inputs: tuple, kwargs: dict, options: dict[str, Any]) -> Tensor:
    """The output of a model call, whose first input is x, from one ``call`` for each group of branches × frames.

    Tensors with as many rows as x are cut, everything else goes to every call. RowsError as in :func:`groups_of`.
    """
    rows, groups = len(inputs[0]), groups_of(inputs[0], options)
    if groups == 1:
        return call(inputs, kwargs)
    size = rows // groups
    parts = (of_frames((inputs, kwargs), rows, rows, start, start + size) for start in range(0, rows, size))
    return torch.cat([call(*part) for part in parts])
