"""What a clip's noise looks like from outside, whatever made it: correlations, divergences, moments."""

from itertools import pairwise

import torch
from torch import Tensor

from .divergence import Divergence


def correlation(frames: Tensor) -> Tensor:
    """Pearson correlation of every two of ``frames`` (F, ...), as float64 (F, F)."""
    flat = frames.flatten(1).double()
    centred = flat - flat.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    if not norms.all():
        raise ValueError(f"Frame {norms.argmin().item()} of the noise is constant, so it has no correlation.")
    unit = centred / norms
    return (unit @ unit.T).clamp(-1, 1)


def neighbour_kl(frames: Tensor, divergence: str = "generalised") -> Tensor:
    """Divergence of each of ``frames`` (F, ...) from the one before, in nats, as float64 (F − 1,)."""
    values = [Divergence(divergence, previous)(frame) for previous, frame in pairwise(frames)]
    return torch.tensor(values, dtype=torch.float64)


def neighbour_alpha(correlations: Tensor) -> Tensor:
    """α = ρ² of each frame and the one before, the share of variance they share; (F, F) → (F − 1,)."""
    return correlations.diagonal(1).clamp(min=0) ** 2
