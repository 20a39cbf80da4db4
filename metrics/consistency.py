"""How steady a clip is from frame to frame, and how close it stays to another.

A clip is (F, H, W, 3), RGB floats in [0, 1], two frames or more. Frames go to ``device`` pair by pair, so memory does
not grow with the length; all results are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .flow import optical_flow, visible, warp
from .similarity import psnr, ssim

FASTEST = 0.05
"""Share of a picture whose motion counts."""


@dataclass(frozen=True)
class Consistency:
    """Figures of every two neighbouring frames, each (F − 1,) float64."""

    ssim: Tensor
    """Structural similarity of the two, at most 1."""
    psnr: Tensor
    """Peak signal to noise ratio between the two in dB."""
    warped_error: Tensor
    """Mean squared error between the first and the second, moved back along the optical flow, over the pixels that both
    show (Lai et al. 2018, "Learning Blind Video Temporal Consistency", §4.3, with squares averaged over channels). NaN
    where they have no pixel in common."""
    flicker: Tensor
    """Mean absolute difference, in [0, 1]: 1 less VBench's temporal flickering score (Huang et al. 2024). It sees
    motion too; compare clips that move alike."""
    motion: Tensor
    """Mean speed of the fastest 5% of the pixels that both show, in pixels per frame: VBench's dynamic degree, before
    its threshold. NaN where there are none."""


@dataclass(frozen=True)
class Agreement:
    """Figures of every frame and the reference's, each (F,) float64."""

    ssim: Tensor
    psnr: Tensor


def means(figures: Consistency | Agreement) -> dict[str, float]:
    """The mean of every figure over the clip, without what is NaN."""
    return {field.name: getattr(figures, field.name).nanmean().item() for field in fields(figures)}


def temporal_consistency(
    images: Tensor,
    motion_of: Tensor | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Consistency:
    """How steady ``images`` is.

    Args:
        images: The clip.
        motion_of: The clip whose motion it should have, of the same shape: the optical flow is this one's, as is usual
            for edits. None: its own.
        progress: Called after every pair.

    Raises:
        ValueError: for a clip of one frame, or clips of different shapes.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) < 2:
        raise ValueError(f"images has shape {tuple(images.shape)}, expected (F, H, W, 3) of two frames or more")
    guide = images if motion_of is None else _alike(motion_of, images)
    rows = []
    for index in range(len(images) - 1):
        first, second = (images[i : i + 1].to(device, _precision(images)) for i in (index, index + 1))
        start, end = (guide[i : i + 1].to(first) for i in (index, index + 1))
        flow = optical_flow(start, end)
        seen = visible(flow, optical_flow(end, start))
        squared = (first - warp(second, flow)).square().mean(-1)
        speeds = flow.norm(dim=-1)[seen]
        rows.append(
            [
                ssim(first, second)[0],
                psnr(first, second)[0],
                squared[seen].mean(),
                (first - second).abs().mean(),
                speeds.topk(math.ceil(FASTEST * len(speeds))).values.mean(),
            ]
        )
        progress()
    return Consistency(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def agreement(images: Tensor, reference: Tensor, device: torch.device | str | None = None) -> Agreement:
    """How close every frame of ``images`` is to that of ``reference``; ValueError for clips of different shapes."""
    _alike(reference, images)
    rows = []
    for index in range(len(images)):
        first, second = (clip[index : index + 1].to(device, _precision(images)) for clip in (images, reference))
        rows.append([ssim(first, second)[0], psnr(first, second)[0]])
    return Agreement(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def _alike(reference: Tensor, images: Tensor) -> Tensor:
    if reference.shape != images.shape:
        raise ValueError(
            f"the reference has shape {tuple(reference.shape)} and the clip {tuple(images.shape)}, expected the same: "
            "as many frames, of the same size"
        )
    return reference


def _precision(images: Tensor) -> torch.dtype:
    """Half precision is too coarse for SSIM's variances."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32
