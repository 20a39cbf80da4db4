"""How alike two pictures are: SSIM, PSNR; two masks: intersection over union.

Pictures are RGB in [0, 1], (B, H, W, 3); results (B,), one for each picture, in the dtype of the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
FINEST = 0.1 / 255
"""Root mean square difference at which two pictures count as equal: a tenth of an 8-bit step, 68.1 dB."""


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of the lumas, in [−1, 1] (Wang et al. 2004, eq. 13).

    Gaussian window 11×11 of σ = 1.5, where it lies inside the picture; ValueError for pictures below 11 pixels.
    """
    from kornia.metrics import ssim as ssim_map

    _require_alike(first, second)
    if min(first.shape[1:3]) < 11:
        raise ValueError(
            f"pictures have {first.shape[1]}×{first.shape[2]} pixels, SSIM needs 11×11 or more. Scale them up."
        )
    first, second = ((pictures @ pictures.new_tensor(LUMA)).unsqueeze(1) for pictures in (first, second))
    return ssim_map(first, second, window_size=11, eps=0, padding="valid").mean((1, 2, 3))


def psnr(first: Tensor, second: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal to noise ratio in dB over all channels, 68.1 for equal pictures (``FINEST``).

    ``where``: (B, H, W) bool, the pixels that count; a picture that has none of them gives NaN.
    """
    _require_alike(first, second)
    squared = (first - second).square().mean(-1)
    where = torch.ones_like(squared) if where is None else where.to(squared)
    error = (squared * where).sum((1, 2)) / where.sum((1, 2))
    return -10 * torch.log10(error.clamp(min=FINEST**2))


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of masks (B, H, W) bool: (B,) float32, 1 where both are empty."""
    common, either = (mask.sum((1, 2)).float() for mask in (first & second, first | second))
    return torch.where(either > 0, common / either.clamp(min=1), 1.0)


def _require_alike(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3:
        raise ValueError(
            f"pictures have shapes {tuple(first.shape)} and {tuple(second.shape)}, expected twice the same (B, H, W, 3)"
        )
