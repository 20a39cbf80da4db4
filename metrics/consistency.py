"""How steady a clip is from frame to frame, and how close it stays to another.

A clip is (F, H, W, 3), RGB floats in [0, 1], two frames or more. Frames go to ``device`` pair by pair, so memory does
not grow with the length; all results are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from .flow import FlowOf, optical_flow, visible, warp
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
    show (Lai et al. 2018, "Learning Blind Video Temporal Consistency", with squares averaged over channels). NaN
    where they have no pixel in common."""
    flicker: Tensor
    """Mean absolute difference, in [0, 1]: 1 less VBench's temporal flickering score (Huang et al. 2024). It sees
    motion too; compare clips that move alike."""
    motion: Tensor
    """Mean speed of the fastest 5% of the pixels that both show, in pixels per frame: VBench's dynamic degree, before
    its threshold. NaN where there are none."""


@dataclass(frozen=True)
class Agreement:
    """Figures of a clip and a reference, float64."""

    ssim: Tensor
    """(F,): structural similarity of each frame and the reference's."""
    psnr: Tensor
    """(F,): peak signal to noise ratio between the two in dB."""
    warped_error: Tensor
    """(F − 1,): the clip's warped error along the reference's motion, as Lai et al. measure edited clips."""


def means(figures: Consistency | Agreement) -> dict[str, float]:
    """The mean of every figure over the clip, without what is NaN."""
    return {field.name: getattr(figures, field.name).nanmean().item() for field in fields(figures)}


def temporal_consistency(
    images: Tensor,
    device: torch.device | str | None = None,
    progress: Callable[[], object] = lambda: None,
    flow_of: FlowOf = optical_flow,
) -> Consistency:
    """How steady ``images`` is; ``progress`` is called after every pair.

    Raises:
        ValueError: for what is no clip of two frames or more.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) < 2:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, expected (F, H, W, 3) of two frames or more. Connect a clip."
        )
    rows = []
    for first, second in pairwise(_frames(images, device)):
        flow, seen = _motion(first, second, flow_of)
        speeds = flow.norm(dim=-1)[seen]
        row = (
            ssim(first, second),
            psnr(first, second),
            _warped_error(first, second, flow, seen),
            (first - second).abs().mean(),
            speeds.topk(math.ceil(FASTEST * len(speeds))).values.mean(),
        )
        rows.append([figure.item() for figure in row])
        progress()
    return Consistency(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def agreement(
    images: Tensor,
    reference: Tensor,
    device: torch.device | str | None = None,
    progress: Callable[[], object] = lambda: None,
    flow_of: FlowOf = optical_flow,
) -> Agreement:
    """How close ``images`` stays to ``reference``, frame by frame; ``progress`` is called after every frame.

    Raises:
        ValueError: for clips of different shapes.
    """
    if reference.shape != images.shape:
        raise ValueError(
            f"reference has shape {tuple(reference.shape)} and images {tuple(images.shape)}, expected the same: as "
            "many frames, of the same size. Use ImageScale or ImageFromBatch on one of them."
        )
    ssims, psnrs, errors, before = [], [], [], None
    for pair in zip(_frames(images, device), _frames(reference, device), strict=True):
        ssims.append(ssim(*pair).item())
        psnrs.append(psnr(*pair).item())
        if before:
            flow, seen = _motion(before[1], pair[1], flow_of)
            errors.append(_warped_error(before[0], pair[0], flow, seen).item())
        before = pair
        progress()
    return Agreement(*(torch.tensor(figures, dtype=torch.float64) for figures in (ssims, psnrs, errors)))


def _frames(images: Tensor, device: torch.device | str | None) -> Iterator[Tensor]:
    """Every frame as (1, H, W, 3), in float32 at least: half precision is too coarse for SSIM's variances."""
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    return (frame.to(device, dtype) for frame in images.split(1))


def _motion(first: Tensor, second: Tensor, flow_of: FlowOf) -> tuple[Tensor, Tensor]:
    """Optical flow (1, H, W, 2) and the pixels that both pictures show, (1, H, W) bool."""
    flow = flow_of(first, second)
    return flow, visible(flow, flow_of(second, first))


def _warped_error(first: Tensor, second: Tensor, flow: Tensor, seen: Tensor) -> Tensor:
    return (first - warp(second, flow)).square().mean(-1)[seen].mean()
