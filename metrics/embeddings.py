"""What a clip shows, by the vectors an image encoder makes of its frames: cosines, at most 1.

Frames are (F, C), a text (C,), any length and float dtype; results are float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_consistency(frames: Tensor) -> Tensor:
    """Of each frame and the next, (F − 1,): the papers' "frame consistency" with CLIP (Esser et al. 2023)."""
    frames = frames.double()
    return F.cosine_similarity(frames[:-1], frames[1:])


def consistency_with_first(frames: Tensor) -> Tensor:
    """Of each frame after the first, (F − 1,): the mean of its cosines with the first frame and the one before, none
    below 0. VBench's subject consistency with DINO, its background consistency with CLIP (Huang et al. 2024)."""
    frames = frames.double()
    first = F.cosine_similarity(frames[1:], frames[:1])
    return (first.clamp(min=0) + frame_consistency(frames).clamp(min=0)) / 2


def similarity(frames: Tensor, others: Tensor) -> Tensor:
    """(F,): of each frame with the same one of ``others`` (F, C), or with a text (C,): CLIP similarity, Radford et al.
    2021, not multiplied by 100."""
    return F.cosine_similarity(frames.double(), others.double(), dim=-1)


def directional_similarity(frames: Tensor, source: Tensor, text: Tensor, source_text: Tensor) -> Tensor:
    """(F,): whether pictures change as their texts do, cos(E(edit) − E(source), E(text) − E(source text)) of unit
    vectors E (Gal et al. 2022, StyleGAN-NADA). NaN where pictures or texts are equal."""
    moved, told = (_unit(a) - _unit(b) for a, b in ((frames, source), (text, source_text)))
    still = (moved.norm(dim=-1) < 1e-6) | (told.norm() < 1e-6)
    return torch.where(still, torch.nan, F.cosine_similarity(moved, told, dim=-1))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.double(), dim=-1)
