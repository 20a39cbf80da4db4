"""Perturbed attention: IE-Adapt (see README) §3.1 and suppl. 8.1. A layer's map A is replaced by another.

A → I, the identity: every token attends to itself, the output is V. A → U, the uniform map: every token attends to
all alike, the output is the mean of V over the keys. Between them αI + (1−α)U, the same blend of the two outputs.
A perturbation is its α: 1 is I, 0 is U. No map is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .branches import Copy
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
    """The technique that perturbs every branch."""

    alpha: float
    stage = Stage.MAPS
    supports_chunks = True
    by_frame = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        return perturbed(call, proceed, self.alpha)


@dataclass(frozen=True, eq=False)
class CopyPerturbation(Technique):
    """The technique that perturbs the copies of branches made for it: a copy's role is its α, or None for A.

    No attention is computed for perturbed rows, and no other branch's row is touched.
    """

    stage = Stage.COPIES
    supports_chunks = True
    by_frame = True
    splits_copies = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        alphas = [tag.role if isinstance(tag, Copy) and tag.owner is self else None for _, tag in call.branches]
        if not any(alpha is not None for alpha in alphas):
            return proceed(call.q, call.k, call.v)
        parts: dict[int, Tensor] = {}
        for alpha in dict.fromkeys(alphas):
            positions = [position for position, each in enumerate(alphas) if each == alpha]
            here = call.only(positions)
            if alpha is None:
                out = proceed(here.q, here.k, here.v, branches=here.branches)
            else:
                out = perturbed(here, proceed, alpha)
            parts.update(zip(positions, out.chunk(len(positions)), strict=True))
        return torch.cat([parts[position] for position in range(len(alphas))])
