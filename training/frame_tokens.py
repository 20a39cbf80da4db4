"""GE-Adapter's tokens (§3.3, Eq. 13 to 15): shared by all frames, of each frame's own, and the text's.

    H_sub[:, i] = (H_vision[:, 2i] + H_vision[:, 2i+1]) / 2        i = 0 ... ⌊N/2⌋ − 1
    Z_unshare = Linear(H_sub)
    Z = [T_share; Z_unshare; text]                                 on the sequence axis

H_vision are the hidden states of a CLIP vision encoder, (frames, N, d): 50 × 768 of a ViT-B/32 in the paper, whose
25 pairs are 25 tokens; of an odd N the last is left out. T_share is (N_share, width of the text), drawn from
N(0, 0.02) and learned. Eq. 15 also writes positive and negative text as one sequence: here, as in every host, they
stay rows of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

INITIAL_STD = 0.02
"""Of the shared tokens. The paper writes N(0, 0.02); as in CLIP's own embeddings, that is the standard deviation."""


def initial_shared_tokens(count: int, width: int, generator: torch.Generator) -> Tensor:
    """T_share before training, (count, width)."""
    return torch.randn(count, width, generator=generator) * INITIAL_STD


def initial_projection(vision_width: int, text_width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight (text, vision) and bias (text,) of the Linear before training: uniform in ±1/√vision, torch's own."""
    reach = vision_width**-0.5
    weight = torch.rand(text_width, vision_width, generator=generator)
    bias = torch.rand(text_width, generator=generator)
    return (weight * 2 - 1) * reach, (bias * 2 - 1) * reach


def average_pairs(hidden: Tensor) -> Tensor:
    """H_sub (..., ⌊N/2⌋, d) of hidden states (..., N, d) (Eq. 13); ValueError where N < 2."""
    pairs = hidden.shape[-2] // 2
    if pairs == 0:
        raise ValueError(f"Expected at least 2 hidden states a frame, got {hidden.shape[-2]}.")
    return hidden[..., : 2 * pairs, :].unflatten(-2, (pairs, 2)).mean(dim=-2)


def frame_tokens(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Z_unshare (frames, ⌊N/2⌋, text width) of hidden states (frames, N, d) (Eq. 13 and 14)."""
    return F.linear(average_pairs(hidden), weight, bias)


def join_tokens(parts: Sequence[Tensor]) -> Tensor:
    """[first; second; ...] on the sequence axis, each (rows, tokens, width) with as many rows as others, or one.

    ValueError where widths or rows disagree.
    """
    rows = max(len(part) for part in parts)
    shapes = ", ".join(" × ".join(map(str, part.shape)) for part in parts)
    if any(len(part) not in (1, rows) for part in parts):
        raise ValueError(f"Expected one row for every frame, or one for all of them, got {shapes}.")
    if len({part.shape[-1] for part in parts}) > 1:
        raise ValueError(f"Expected tokens of one width, got {shapes}.")
    return torch.cat([part.expand(rows, -1, -1) for part in parts], dim=1)
