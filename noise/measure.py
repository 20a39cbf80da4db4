"""What a clip's noise looks like from outside, whatever made it: correlations, divergences, moments."""

from itertools import pairwise
from typing import NamedTuple

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


class Moments(NamedTuple):
    """``neighbours``: correlation of adjacent cells, which is high in a picture's latent."""

    mean: float
    std: float
    neighbours: float

    @classmethod
    def of(cls, frame: Tensor) -> "Moments":
        """Of one frame (C, H, W)."""
        mean = frame.double().mean()
        x = frame.double() - mean
        variance = x.square().mean()
        products = torch.cat([(x[..., 1:] * x[..., :-1]).flatten(), (x[..., 1:, :] * x[..., :-1, :]).flatten()])
        neighbours = (products.mean() / variance).item() if len(products) and variance > 0 else 0.0
        return cls(mean.item(), variance.sqrt().item(), neighbours)

    def are_of_noise(self, count: int) -> bool:
        """Whether ``count`` values of standard normal noise may have these moments.

        On small frames random search adds to the spread of the estimates: eight standard errors hold for all solvers
        and divergences from 4 × 8 × 8 up.
        """
        chance = 8 / count**0.5
        return (
            abs(self.mean) <= max(0.1, chance)
            and abs(self.std - 1) <= max(0.15, chance / 2**0.5)
            and self.neighbours <= max(0.5, chance)
        )
