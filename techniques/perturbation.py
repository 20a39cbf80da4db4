"""Perturbed attention: IE-Adapt (see README) §3.1 and suppl. 8.1. A layer's map A is replaced by another.

A → I, the identity: every token attends to itself, the output is V. A → U, the uniform map: every token attends to
all alike, the output is the mean of V over the keys. Between them αI + (1−α)U, the same blend of the two outputs.
A perturbation is its α: 1 is I, 0 is U. No map is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .branches import Copy
from .choice import ALL_HEADS, NONE, Choice, Heads, with_heads
from .technique import AttentionCall, Proceed, Stage, Technique

UNIFORM, IDENTITY = 0.0, 1.0


class NoIdentityError(ValueError):
    """A layer with other numbers of queries and keys has no identity map."""


def attend_uniformly(call: AttentionCall, proceed: Proceed) -> Tensor:
    """The mean of v over the keys, for every query; over those that a mask lets be seen (U is softmax of mask alone).

    Accumulates in at least float32.
    """
    if call.mask is not None:
        return proceed(torch.zeros_like(call.q), call.k, call.v, branches=call.branches)
    mean = call.v.mean(dim=-2, keepdim=True, dtype=torch.promote_types(call.v.dtype, torch.float32)).to(call.v.dtype)
    tiles = len(call.q) // len(call.v)  # HyperTile cuts the queries of a frame into several rows, and no keys
    mean = mean if tiles == 1 else mean.repeat_interleave(tiles, dim=0)
    return call.output_of(mean.expand(*mean.shape[:-2], call.q.shape[-2], -1))


def attend_to_itself(call: AttentionCall) -> Tensor:
    """v. NoIdentityError where there are more or fewer keys than queries."""
    queries, keys = call.q.shape[-2], call.v.shape[-2]
    if queries != keys:
        raise NoIdentityError(
            f"Attention layer {call.site.name} has {queries} queries and {keys} keys here, an identity map needs as "
            "many of both. Choose matrix 'uniform', leave the layer out of the registry, or remove the node that "
            "gives it further keys (such as CrossFrameAttention first_and_previous) or fewer queries (HyperTile)."
        )
    return call.output_of(call.v)


def perturbed(call: AttentionCall, proceed: Proceed, alpha: float) -> Tensor:
    """(αI + (1−α)U)V, shaped as ``proceed`` returns AV."""
    if alpha == IDENTITY:
        return attend_to_itself(call)
    uniform = attend_uniformly(call, proceed)
    return uniform if alpha == UNIFORM else torch.lerp(uniform, attend_to_itself(call), alpha)


@dataclass(frozen=True)
class Perturbation(Technique):
    """The technique that perturbs every branch, at the heads of ``choice``."""

    alpha: float
    choice: Choice = ALL_HEADS
    stage = Stage.MAPS
    supports_chunks = True
    by_frame = True

    def begin(self) -> None:
        self.choice.begin()

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        self.choice.see(call)
        return _by_branch(call, proceed, [(self.alpha, self.choice.heads(call, n)) for n in range(len(call.branches))])


@dataclass(frozen=True, eq=False)
class CopyPerturbation(Technique):
    """The technique that perturbs the copies of branches made for it, at the heads of ``choice``: a copy's role is its
    α, or None for A.

    No attention is computed for rows that are perturbed as a whole, and no other branch's row is touched.
    """

    choice: Choice = ALL_HEADS
    stage = Stage.COPIES
    supports_chunks = True
    by_frame = True
    splits_copies = True

    def begin(self) -> None:
        self.choice.begin()

    def parts_at(self, names: frozenset[str], sigma: float) -> frozenset[str]:
        return self.choice.acts_at(names, sigma)

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        self.choice.see(call)
        alphas = [tag.role if isinstance(tag, Copy) and tag.owner is self else None for _, tag in call.branches]
        if not any(alpha is not None for alpha in alphas):
            return proceed(call.q, call.k, call.v)
        return _by_branch(
            call,
            proceed,
            [(a, NONE if a is None else self.choice.heads(call, n)) for n, a in enumerate(alphas)],
        )


def _by_branch(call: AttentionCall, proceed: Proceed, wanted: Sequence[tuple[float | None, Heads]]) -> Tensor:
    """Of every branch the output with its heads perturbed by its α; branches for which the same holds stay together."""
    wanted = [(alpha, heads) if heads else (None, NONE) for alpha, heads in wanted]
    parts: dict[int, Tensor] = {}
    for alpha, heads in dict.fromkeys(wanted):
        positions = [position for position, each in enumerate(wanted) if each == (alpha, heads)]
        here = call if len(positions) == len(wanted) else call.only(positions)
        out = _at_heads(here, proceed, alpha, heads)
        if here is call:
            return out
        parts.update(zip(positions, out.chunk(len(positions)), strict=True))
    return torch.cat([parts[position] for position in range(len(wanted))])


def _at_heads(call: AttentionCall, proceed: Proceed, alpha: float | None, heads: Heads) -> Tensor:
    if alpha is not None and len(heads) == call.heads:
        return perturbed(call, proceed, alpha)
    out = proceed(call.q, call.k, call.v, branches=call.branches)
    return out if alpha is None else with_heads(call, out, perturbed(call, proceed, alpha), heads)
