"""What a technique is, and what it gets to see of an attention layer. :mod:`.tap` brings the two together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .sites import Site

Proceed = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer, about to attend.

    ``q``, ``k``, ``v``: rows × … × tokens × channels, rows = branches × frames (branch by branch, frames inside).
    ``branches``: for each branch in this call the index of its conditioning and its uuid.
    ``frame_indices``: the clip's frame that each row of a branch holds.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    site: Site
    branches: tuple[tuple[int, Any], ...]
    frame_indices: tuple[int, ...]
    sigma: float

    @property
    def frames(self) -> int:
        return len(self.frame_indices)


class Technique(Protocol):
    """What can be put on the tap. ``stage`` orders techniques on one model; within a stage the nodes' order holds."""

    stage: int

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        """The layer's output, shaped as ``proceed(call.q, call.k, call.v)`` returns it."""
        ...
