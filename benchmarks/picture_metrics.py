"""How sharp a shape's edge is, and how far a picture's structure is off another's: tensors in, tensors out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 4
"""Pixels: what is no farther from an edge belongs to it."""
GRADIENTS = 170 / 255**2
"""GMSD's constant, for pictures in [0, 1]."""


def edge_slope(pictures: Tensor, shape: Tensor) -> Tensor:
    """How steeply pictures (B, H, W, 3) of two colours change from the one to the other, at the edge of ``shape``
    (B, H, W) bool: (B,) per pixel, 0 where there is no shape.

    The mean gradient of the coverage c (0 on the background, 1 on the shape) along its own gradient, Σ|∇c|²/Σ|∇c|: one
    over the width of the edge, however long that is and whatever the contrast. Pixels within ``NEAR`` of it count.
    """
    inside, outside = (
        torch.where(area[..., None], pictures, torch.nan).flatten(1, 2).nanmedian(1).values for area in (shape, ~shape)
    )
    axis = inside - outside
    cover = ((pictures - outside[:, None, None]) * axis[:, None, None]).sum(-1) / axis.square().sum(-1)[:, None, None]
    down, across = torch.gradient(cover, dim=(1, 2))
    gradient = torch.hypot(down, across)
    near = F.max_pool2d(torch.stack([shape, ~shape], dim=1).float(), 2 * NEAR + 1, stride=1, padding=NEAR).amin(1)
    slope = (gradient.square() * near).sum((1, 2)) / (gradient * near).sum((1, 2))
    return slope.nan_to_num(0.0)


def gmsd(first: Tensor, second: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation (Xue et al. 2014, IEEE TIP 23(2)) of lumas (B, H, W) in [0, 1]: (B,), 0
    for equal structure; it follows opinion scores better than SSIM, and needs no network."""
    ramp = first.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([ramp, ramp.mT])[:, None]

    def magnitude(luma: Tensor) -> Tensor:
        halved = F.avg_pool2d(luma[:, None], 2)
        return F.conv2d(halved, kernels, padding=1).norm(dim=1)

    a, b = magnitude(first), magnitude(second)
    similarity = (2 * a * b + GRADIENTS) / (a.square() + b.square() + GRADIENTS)
    return similarity.std((1, 2), correction=0)
