"""A LoRA with random weights."""

from __future__ import annotations

import torch
from coherence.training.low_rank import attention_projections, initial_lora


def lora_for(model, layers="all", seed=0, gain=1.0):
    """A LoRA with a B that is not 0, as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    lora = initial_lora(attention_projections(model.model, layers), 4, generator)
    return {
        name: gain * torch.randn(x.shape, generator=generator) if name.endswith("lora_up.weight") else x
        for name, x in lora.items()
    }
