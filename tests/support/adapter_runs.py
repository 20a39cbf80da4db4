"""Small trainings of a GE-Adapter."""

from __future__ import annotations

import torch
from coherence.training.ge_adapter_training import Clips, Settings

FRAMES, WIDTH, VISION = 3, 128, 16
QUICK = Settings(
    steps=2,
    learning_rate=1e-3,
    warmup_steps=0,
    gradient_accumulation=1,
    rank=2,
    shared_tokens=2,
    temporal_range_start=0.0,
    seed=5,
)


def clips(number=2, frames=FRAMES, vision=True, size=8):
    """Random clips whose frames are similar, with random captions."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(number, 1, 4, size, size, generator=generator)
    samples = (base + 0.3 * torch.randn(number, frames, 4, size, size, generator=generator)).flatten(0, 1)
    texts = [[[torch.randn(1, 8, WIDTH, generator=generator), {}]] for _ in range(number)]
    hidden = torch.randn(number * frames, 6, VISION, generator=generator)
    return Clips({"samples": samples}, frames, texts, hidden if vision else None)


def weights(adapter):
    """All tensors of an adapter by name."""
    return {**adapter.lora, "shared": adapter.shared_tokens, **dict(enumerate(adapter.projection or ()))}
