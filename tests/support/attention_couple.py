"""Attention couple as a model's patch, as packs have it."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def coupled(model: ModelPatcher) -> ModelPatcher:
    """Adds rows that attend to a region's text, for the one positive of a call."""
    model, region = model.clone(), torch.randn(1, 32, 128, generator=torch.Generator().manual_seed(2))

    def couple(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        told = options["cond_or_uncond"]
        if 0 not in told:
            return q, k, v
        assert told.count(0) == 1
        further = region.expand(len(q) // len(told), -1, -1)
        return torch.cat([q, q.chunk(len(told))[told.index(0)]]), torch.cat([k, further]), torch.cat([v, further])

    def join(n: Tensor, options: dict[str, Any]) -> Tensor:
        told = options["cond_or_uncond"]
        if 0 not in told:
            return n
        *parts, further = n.chunk(len(told) + 1)
        parts[told.index(0)] = (parts[told.index(0)] + further) / 2
        return torch.cat(parts)

    model.set_model_attn2_patch(couple)
    model.set_model_attn2_output_patch(join)
    return model
