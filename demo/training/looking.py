"""Heads of attention that begin by looking at the patch beside, as convolutions do.

Query and key get a constant part in the fastest waves of the rotary embedding; the key's is turned by the way to look.
Heads took thousands of steps to become so by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10_000  # of the rotary embedding
FAST, BIAS, CONTENT = 2, 2.5, 0.3  # the waves of each axis that are used, how strong they are, and what is left


class Axis(NamedTuple):
    """Channels of a head that the rotary embedding turns along an axis, and how far to look along it, at an angle."""

    start: int
    channels: int
    way: Callable[[float], float]


class Projection(NamedTuple):
    """Views of a layer's weight (heads, channels, in), its bias (heads, channels), and, where every head has its own,
    the weight of the norm after it."""

    weight: Tensor
    bias: Tensor
    norm: Tensor | None = None


def look_aside(queries: Projection, keys: Projection, axes: Sequence[Axis], number: int, gain: float = 1.0) -> None:
    """All heads but the last look aside, each in another direction, and elsewhere in the next layer, ``number`` + 1.
    ``gain``: of the norms."""
    turned = len(queries.bias) - 1
    for head in range(turned):
        angle = 2 * math.pi * (head / turned + number / (2 * turned))
        for part in (queries, keys):
            part.weight[head] *= CONTENT
        for start, channels, way in axes:
            for wave in range(FAST):
                pair, turn = slice(start + 2 * wave, start + 2 * wave + 2), way(angle) * THETA ** (-2 * wave / channels)
                queries.bias[head, pair] = torch.tensor([BIAS, 0.0])
                keys.bias[head, pair] = BIAS * torch.tensor([math.cos(turn), math.sin(turn)])
                for part in (queries, keys):
                    if part.norm is not None:
                        part.norm[head, pair] = gain
