"""Noise models without a search: i.i.d., mixed and progressive noise (PYoCo, as given in ZS² §3, arXiv
2407.21475).

Each yields ``frames`` tensors of shape S from ``first``, frame 0, and ``draw(i, n)``, n independent standard
normal noises (n, *S) for frame i. Every frame is standard normal, and no frame depends on how many follow.
"""

from collections.abc import Iterator

from torch import Tensor

from .divergence import blend
from .streams import Draw

PRIORS = ("iid", "mixed", "progressive")


def iid(first: Tensor, draw: Draw, frames: int) -> Iterator[Tensor]:
    """Every frame independent of the others."""
    yield first
    for index in range(1, frames):
        yield draw(index, 1)[0]


def mixed(first: Tensor, draw: Draw, frames: int, alpha: float) -> Iterator[Tensor]:
    """ε^i = √α ε_shared + √(1 − α) ε_ind^i: the correlation of any two frames is α.

    Frame 0 is given, so ε_shared is drawn from its distribution given ε^0: √α ε^0 + √(1 − α) u with u ~ N(0,
    I).
    """
    yield first
    shared = blend(first, draw(0, 1)[0], alpha)
    for index in range(1, frames):
        yield blend(shared, draw(index, 1)[0], alpha)


def progressive(first: Tensor, draw: Draw, frames: int, alpha: float) -> Iterator[Tensor]:
    """ε^i = √α ε^{i−1} + √(1 − α) ε_ind^i: the correlation of frames i and j is α^(|i − j| / 2)."""
    frame = first
    yield frame
    for index in range(1, frames):
        frame = blend(frame, draw(index, 1)[0], alpha)
        yield frame
