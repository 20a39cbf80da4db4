"""What a clip lost compared with another of the same noise: larger is worse, float64.

Clips are (F, H, W, 3), RGB floats in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .look import look
from .similarity import ssim


def change(clip: Tensor, plain: Tensor) -> float:
    """How far the pictures are off: 1 − SSIM of each frame and the plain one, on average."""
    return 1 - _mean(ssim(a, b) for a, b in zip(clip.split(1), plain.split(1), strict=True))


def consistency_lost(clip: Tensor, plain: Tensor) -> float:
    """By how much the SSIM of neighbouring frames falls; NaN for one frame."""
    return _neighbours(plain) - _neighbours(clip)


def sharpness_lost(clip: Tensor, plain: Tensor) -> float:
    """By which share edges become wider (:class:`.look.Look`); below 0 where they become narrower."""
    now, before = (float(look(x).sharpness.nanmean()) for x in (clip, plain))
    return 1 - now / before


DAMAGES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "change": change,
    "consistency": consistency_lost,
    "sharpness": sharpness_lost,
}


def _neighbours(clip: Tensor) -> float:
    frames = clip.split(1)
    return _mean(ssim(a, b) for a, b in zip(frames[1:], frames[:-1], strict=True))


def _mean(values: Iterable[Tensor]) -> float:
    found = [each.double() for each in values]
    return float(torch.cat(found).mean()) if found else math.nan
