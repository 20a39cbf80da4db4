"""The branches of one model call: which rows belong to which branch, and which branches are copies.

ComfyUI evaluates several conditionings in one call, their rows one branch after the other, and tells of each its
index and its uuid. Everybody else's patches take the index for the side: 0 is the positive, 1 the negative, and the
negative's rows come first. Branches that ComfyUI does not have by itself must look the same to them, so only their
uuids differ. A branch that is to be evaluated once more, with something changed inside the model, carries a
:class:`Copy`; one of two clips that are sampled together carries an :class:`OfClip`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

Branch = tuple[Any, Any]
"""The index of a conditioning, as everybody is told it; and its uuid."""


@dataclass(frozen=True)
class Copy:
    """The uuid of a branch evaluated once more: ``of`` the conditioning with that uuid, whose index is ``index``, for
    ``owner``, who told it by ``role``."""

    of: Any
    index: int
    owner: Any
    role: Any


@dataclass(frozen=True)
class OfClip:
    """The uuid of a branch of one of several clips: ``of`` the conditioning with that uuid, told by ``index``."""

    of: Any
    index: int
    clip: int


def branches_of(options: dict[str, Any]) -> tuple[Branch, ...]:
    """The branches in a call with these transformer options, in the order of their rows."""
    pairs = zip_longest(options.get("cond_or_uncond", (0,)), options.get("uuids", ()), fillvalue=None)
    return tuple((tag.index if isinstance(tag, Copy | OfClip) else index, tag) for index, tag in pairs)


def told_order(branches: Sequence[Branch]) -> list[int]:
    """The positions of ``branches`` in the order in which others expect them: negatives first, copies behind the
    originals beside which they stand. Of several with one index some look for the first alone. Calls that ComfyUI
    makes by itself are as they are."""
    if not any(isinstance(tag, Copy | OfClip) for _, tag in branches):
        return list(range(len(branches)))
    return sorted(range(len(branches)), key=lambda n: (-branches[n][0], isinstance(branches[n][1], Copy)))


def with_branches(options: dict[str, Any], branches: Sequence[Branch]) -> dict[str, Any]:
    """A copy of the transformer options for ``branches``."""
    return {**options, "cond_or_uncond": [i for i, _ in branches], "uuids": [tag for _, tag in branches]}


def rows_of(x: Tensor, branches: int, kept: Sequence[int]) -> Tensor:
    """The rows of the ``kept`` of ``branches`` equal parts of ``x``; a view where these follow one another."""
    size = len(x) // branches
    first = kept[0]
    if list(kept) == list(range(first, first + len(kept))):
        return x.narrow(0, first * size, len(kept) * size)
    return torch.cat([x.narrow(0, position * size, size) for position in kept])  # an index would make a GPU wait


def with_rows(x: Tensor, branches: int, kept: Sequence[int], rows: Tensor) -> Tensor:
    """``x`` with ``rows`` in the place of its :func:`rows_of`."""
    parts = list(x.chunk(branches))
    for position, part in zip(kept, rows.chunk(len(kept)), strict=True):
        parts[position] = part
    return torch.cat(parts)


def of_rows(tree: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    """``tree`` of tuples, lists and dicts, with ``change`` made to the tensors in it that have ``rows`` rows."""
    if isinstance(tree, Tensor):
        return change(tree) if tree.ndim and len(tree) == rows else tree
    if type(tree) in (tuple, list):
        return type(tree)(of_rows(each, rows, change) for each in tree)
    if type(tree) is dict:
        return {name: of_rows(each, rows, change) for name, each in tree.items()}
    return tree


def originals(branches: Sequence[Branch]) -> tuple[list[int], list[int]]:
    """The positions of branches that differ, and for every branch the place among them of the one it equals.

    Of equal ones the first is named: in :func:`told_order` it is the original, and the originals' rows follow one
    another. A uuid alone does not tell a conditioning: ComfyUI gives an area's to the negative that it makes for the
    same area.
    """
    equal = [
        (index, tag.of if isinstance(tag, Copy) else position if tag is None else tag)
        for position, (index, tag) in enumerate(branches)
    ]
    kept = [position for position, key in enumerate(equal) if key not in equal[:position]]
    return kept, [kept.index(equal.index(key)) for key in equal]
