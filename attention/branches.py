"""The branches of one model call: whose rows are whose, and which of them are copies of another.

ComfyUI evaluates several conditionings in one call, their rows one branch after the other, and tells of each its
index and its uuid. A branch that is to be evaluated once more, with something changed inside the model, carries a
:class:`Copy` as its uuid: the technique that asked for it finds its rows again, and everybody else's patches see the
index of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

Branch = tuple[Any, Any]
"""The index of a conditioning, a copy's original's; and its uuid."""


@dataclass(frozen=True)
class Copy:
    """The uuid of a branch evaluated once more: ``of`` the conditioning with that uuid, whose index is ``index``, for
    ``owner``, who told it by ``role``."""

    of: Any
    index: int
    owner: Any
    role: Any


def branches_of(options: dict[str, Any]) -> tuple[Branch, ...]:
    """The branches in a call with these transformer options, in the order of their rows."""
    pairs = zip_longest(options.get("cond_or_uncond", (0,)), options.get("uuids", ()), fillvalue=None)
    return tuple((tag.index if isinstance(tag, Copy) else index, tag) for index, tag in pairs)


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


def originals(branches: Sequence[Branch]) -> tuple[list[int], list[int]]:
    """The positions of branches that differ, and for every branch the place among them of the one it equals.

    Of equal ones the last is named: ComfyUI has the originals last, so that their rows follow one another. A uuid
    alone does not tell a conditioning: ComfyUI gives an area's to the negative that it makes for the same area.
    """
    equal = [
        (index, tag.of if isinstance(tag, Copy) else position if tag is None else tag)
        for position, (index, tag) in enumerate(branches)
    ]
    last = {key: position for position, key in enumerate(equal)}
    kept = sorted(last.values())
    return kept, [kept.index(last[key]) for key in equal]
