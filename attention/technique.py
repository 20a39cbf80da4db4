"""What a technique is, and what it gets to see of an attention layer. :mod:`.tap` brings the two together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:  # techniques know nothing of ComfyUI, whose modules a site is found by
    from .families import Site

Proceed = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer, about to attend.

    ``q``, ``k``, ``v`` are rows × … × tokens × channels, one branch's rows after the other's.
    ``branches``: for each branch in this call the index of its conditioning and its uuid.
    ``frame_indices``: the clip's (latent) frames that the call holds, in order. ``site.frames_in`` says where: one
    to a row; or in q's tokens, ``tokens_per_frame`` for each after ``leading_tokens`` that belong to none (text).
    Both are None where frames lie in the rows, or tokens of other things (references, guides) are among them.
    ``mask``: what the host adds to the scores, or True where a key is seen; ``scale``: their factor, 1/√c if None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    site: Site
    branches: tuple[tuple[int, Any], ...]
    frame_indices: tuple[int, ...]
    sigma: float
    mask: Tensor | None = None
    scale: float | None = None
    leading_tokens: int | None = None
    tokens_per_frame: int | None = None

    @property
    def frames(self) -> int:
        return len(self.frame_indices)

    @property
    def rows_per_branch(self) -> int:
        return len(self.q) // len(self.branches)

    def per_head(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as (rows, heads, tokens, channels per head), whichever layout the host uses.

        Keys and values that several query heads share (grouped-query attention) are repeated for each.
        """
        q = _split_heads(self.q, self.q.shape[-1] // self.heads if self.q.ndim == 3 else self.q.shape[-1])
        k, v = (_split_heads(x, q.shape[-1]) for x in (self.k, self.v))
        k, v = (x.repeat_interleave(self.heads // x.shape[1], dim=1) for x in (k, v))
        return q, k, v

    def per_head_output(self, out: Tensor) -> Tensor:
        """The layer's output, as ``proceed`` returns it, as (rows, heads, tokens, channels per head)."""
        return _split_heads(out, out.shape[-1] // self.heads if out.ndim == 3 else out.shape[-1])


def _split_heads(x: Tensor, channels: int) -> Tensor:
    """(rows, tokens, heads · channels), or already (rows, heads, tokens, channels), to the latter."""
    return x if x.ndim == 4 else x.unflatten(-1, (-1, channels)).transpose(1, 2)


class Technique(Protocol):
    """What can be put on the tap. ``stage`` orders techniques on one model; within a stage the nodes' order holds."""

    stage: int

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        """The layer's output, shaped as ``proceed(call.q, call.k, call.v)`` returns it."""
        ...
