"""The bilateral filter, over the picture or over the frames: GE-Adapter §3.2, Eq. 9 to 11.

    B(x)_p = Σ_q w(p, q) x_q / Σ_q w(p, q),   w = exp(−|p − q|² / 2σ_spatial²) · exp(−(x_p − x_q)² / 2σ_intensity²)

with q in a window around p. It averages like a Gaussian blur, but only over values that are close: noise goes, edges
stay. Every value lies between the least and the greatest of its window, and B(x + c) = B(x) + c.

The window is walked shift by shift, a part of the tensor at a time: one window at once would be k² copies of it.
"""

from itertools import product
from math import exp
from typing import Any

import torch
from torch import Tensor

_PARTS = 8
"""A filter holds six times what it works on; an eighth of the tensor at a time, that is less than the tensor."""


def bilateral_spatial(latents: Tensor, kernel_size: int, sigma_spatial: float, sigma_intensity: float) -> Tensor:
    """Each picture of ``latents`` (..., H, W), that is each frame and channel, filtered by itself.

    ``kernel_size``: width of the window in latent pixels, odd; the picture is reflected at its border.
    ``sigma_spatial`` in latent pixels, ``sigma_intensity`` in the units of ``latents``; both positive, maybe infinite.
    Returns shape and dtype of ``latents``. ValueError for a kernel or sigma that is none.
    """
    return _in_parts(latents, 2, kernel_size, sigma_spatial, sigma_intensity)


def bilateral_temporal(clip: Tensor, kernel_size: int, sigma_spatial: float, sigma_intensity: float) -> Tensor:
    """Every element of ``clip`` (frames, ...) filtered along the frames; as above, ``sigma_spatial`` in frames."""
    return _in_parts(clip.movedim(0, -1), 1, kernel_size, sigma_spatial, sigma_intensity).movedim(-1, 0)


def restandardised(filtered: Tensor, original: Tensor) -> Tensor:
    """``filtered`` with the standard deviation that each frame and channel (H, W) of ``original`` has; means stay.

    Averaging shrinks noise (to 0.71 by a window of 5, both sigmas 1), and a model takes what is left for less noise.
    """
    spread, mean = torch.std_mean(filtered, dim=(-2, -1), correction=0, keepdim=True)
    wanted = original.std(dim=(-2, -1), correction=0, keepdim=True)
    return mean + (filtered - mean) * torch.where(spread > 0, wanted / spread, 1)


def _in_parts(x: Tensor, axes: int, kernel_size: int, sigma_spatial: float, sigma_intensity: float) -> Tensor:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size is {kernel_size}, expected an odd number, such as 3 or 5: the window needs a centre."
        )
    if not (sigma_spatial > 0 and sigma_intensity > 0):
        raise ValueError(
            f"sigma_spatial is {sigma_spatial} and sigma_intensity {sigma_intensity}, expected both above 0. "
            "Near 0 the filter changes nothing."
        )
    result = torch.empty_like(x)
    for part, out in zip(*(_parts(each, axes) for each in (x, result)), strict=True):
        out.copy_(_filtered(part, axes, kernel_size, sigma_spatial, sigma_intensity))
    return result


def _parts(x: Tensor, axes: int) -> list[Tensor]:
    """Views that ``x`` falls into along the longest of the axes that no window reaches over."""
    free = x.shape[: x.ndim - axes]
    return list(x.chunk(_PARTS, dim=free.index(max(free)))) if free else [x]


def _filtered(x: Tensor, axes: int, kernel_size: int, sigma_spatial: float, sigma_intensity: float) -> Tensor:
    centre = x.to(torch.promote_types(x.dtype, torch.float32))
    radius = kernel_size // 2
    padded = centre
    for axis in range(-axes, 0):
        padded = padded.index_select(axis, _reflected(x.shape[axis], radius).to(x.device))
    pull, weights = torch.zeros_like(centre), torch.zeros_like(centre)
    for shift in product(range(kernel_size), repeat=axes):
        inside = (slice(start, start + size) for start, size in zip(shift, x.shape[-axes:], strict=True))
        window: tuple[Any, ...] = (..., *inside)
        difference = padded[window] - centre
        distance = sum(((start - radius) / sigma_spatial) ** 2 for start in shift)
        weight = (difference / sigma_intensity).square_().mul_(-0.5).exp_().mul_(exp(-0.5 * distance))
        weights += weight
        pull += difference.mul_(weight)
    return centre + pull / weights


def _reflected(size: int, radius: int) -> Tensor:
    """Indices of a row of ``size``, and ``radius`` more on either side as in a mirror: 2 1 | 0 1 2 3 | 2 1.

    The mirrors may face each other: a window may be wider than the row.
    """
    period = max(2 * (size - 1), 1)
    index = torch.arange(-radius, size + radius) % period
    return torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index)
