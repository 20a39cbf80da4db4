"""How far every pixel of a picture moves to the next: dense optical flow without learned weights.

Pyramidal Lucas–Kanade in its dense, iterative form (Le Besnerais & Champagnat 2005, "Dense optical flow by iterative
local window registration"), over all three colour channels: two colours of the same brightness still have an edge.
Where a window shows nothing to hold on to, the flow is its neighbours' and that of the coarser pictures.

Pictures are (B, H, W, 3) floats in [0, 1]; a flow is (B, H, W, 2), x to the right and y down, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = 3.0  # pixels: the Gaussian window that moves as one
ITERATIONS = 4  # for each size of the pyramid
SMALLEST = 11  # pixels: no picture of the pyramid is less high or wide
STIFFNESS = 1e-3  # squared gradient per pixel below which a window counts as empty

FlowOf = Callable[[Tensor, Tensor], Tensor]
"""What measures flow: two pictures (B, H, W, 3) → (B, H, W, 2), as :func:`optical_flow` does."""


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """The flow for which ``first`` is ``warp(second, flow)``, (B, H, W, 2) in pixels. ValueError for pictures that are
    less than two pixels high or wide."""
    from kornia.geometry.transform import pyrdown

    a, b = first.movedim(-1, 1), second.movedim(-1, 1)
    if min(a.shape[2:]) < 2:
        raise ValueError(
            f"pictures have {a.shape[2]}×{a.shape[3]} pixels, optical flow needs 2×2 or more. Use larger ones."
        )
    pyramid = [(a, b)]
    while min(a.shape[2:]) >= 2 * SMALLEST:
        a, b = pyrdown(a), pyrdown(b)
        pyramid.append((a, b))
    flow = a.new_zeros(len(a), 2, *a.shape[2:])
    for a, b in reversed(pyramid):
        ratio = torch.tensor([a.shape[3] / flow.shape[3], a.shape[2] / flow.shape[2]]).to(flow)
        flow = F.interpolate(flow, a.shape[2:], mode="bilinear") * ratio[:, None, None]
        for _ in range(ITERATIONS):
            flow = _refine(a, b, flow)
    return flow.movedim(1, -1)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """``picture`` (B, H, W, C) looked up where ``flow`` points to, bilinearly; its border goes on outside."""
    return _warp(picture.movedim(-1, 1), flow.movedim(-1, 1)).movedim(1, -1)


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of the first picture the second shows, too: (B, H, W) bool.

    Those whose way there and back returns (Sundaram, Brox & Keutzer 2010) and does not leave the picture.
    """
    back = warp(backward, forward)
    height, width = forward.shape[1:3]
    target = forward + _grid(height, width, forward).movedim(0, -1)
    inside = ((target >= 0) & (target <= target.new_tensor([width - 1, height - 1]))).all(-1)
    off, lengths = (forward + back).square().sum(-1), (forward.square() + back.square()).sum(-1)
    return inside & (off < 0.01 * lengths + 0.5)


def _refine(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """One step: the displacement that explains each window best, linearised at ``flow`` (B, 2, h, w)."""
    from kornia.filters import gaussian_blur2d

    moved = _warp(second, flow)
    gy, gx = torch.gradient((first + moved) / 2, dim=(2, 3))
    u, v = flow[:, :1], flow[:, 1:]
    rest = first - moved + gx * u + gy * v
    products = [(p * q).sum(1, keepdim=True) for p, q in ((gx, gx), (gx, gy), (gy, gy), (gx, rest), (gy, rest))]
    side = 2 * round(2.5 * SIGMA) + 1
    sums = gaussian_blur2d(torch.cat([*products, flow], dim=1), side, (SIGMA, SIGMA), border_type="replicate")
    xx, xy, yy, xt, yt, u, v = sums.split(1, dim=1)
    xx, yy, xt, yt = xx + STIFFNESS, yy + STIFFNESS, xt + STIFFNESS * u, yt + STIFFNESS * v
    return torch.cat([yy * xt - xy * yt, xx * yt - xy * xt], dim=1) / (xx * yy - xy * xy)


def _warp(picture: Tensor, flow: Tensor) -> Tensor:
    height, width = flow.shape[2:]
    last = flow.new_tensor([width - 1, height - 1])
    target = (flow + _grid(height, width, flow)).movedim(1, -1)
    unit = 2 * target.clamp(min=0).minimum(last) / last - 1  # clamped by hand: not every device knows "border"
    return F.grid_sample(picture, unit, align_corners=True)


def _grid(height: int, width: int, like: Tensor) -> Tensor:
    """x and y of every pixel, (2, height, width)."""
    y, x = torch.meshgrid(torch.arange(height).to(like), torch.arange(width).to(like), indexing="ij")
    return torch.stack([x, y])
