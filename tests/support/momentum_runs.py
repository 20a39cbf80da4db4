"""Clips that momentum attention runs on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from coherence.attention.sites import Site
from coherence.techniques.technique import AttentionCall

TOKENS, CHANNELS = 5, 8


def clip(frames: int, branches: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """Sharp q, k, v: a mistake in the keys must show in the output."""
    generator = torch.Generator().manual_seed(seed)
    shape = (branches * frames, TOKENS, CHANNELS)
    return [4 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def run(technique, q, k, v, branches: int = 2, frame_indices=None, memory=None) -> torch.Tensor:
    frame_indices = frame_indices or tuple(range(len(q) // branches))
    site = Site("middle.0.attn1", 0, "spatial", 1, None)
    call = AttentionCall(q, k, v, 1, site, ((1, None), (0, None))[:branches], frame_indices, 1.0, memory=memory)
    return technique.attend(call, F.scaled_dot_product_attention)
