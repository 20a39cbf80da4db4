"""Clips of noise by every model, for the tests of noise."""

from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from coherence.nodes.noise import DependencyNoise
from coherence.noise.dependency import dependency_noise
from coherence.noise.priors import iid, mixed, progressive
from coherence.noise.streams import NoiseModel, clip_noise, generator


def dependency(kl: float | Callable[[int], float] = 0.01, **options) -> NoiseModel:
    """The dependency noise with one λ, or λ as a function of the frame."""

    def model(first, draw, frames):
        schedule = [kl(frame) if callable(kl) else kl for frame in range(frames)]
        return dependency_noise(first, draw, schedule, **options)

    return model


def dependency_node(kl: float = 0.1, kl_schedule: str = "", *, seed: int = 3, **inputs):
    """What the node DependencyNoise gives."""
    settings = {"divergence": "generalised", "solver": "bisection", "random_candidates": 1, "line_iterations": 15}
    return DependencyNoise.execute(seed, kl, kl_schedule, **settings | inputs)[0]


MODELS = {
    "iid": iid,
    "mixed": partial(mixed, alpha=0.5),
    "progressive": partial(progressive, alpha=0.5),
    "dependency": dependency(),
    "search": dependency(orthogonal=False, candidates=10),
    "line_search": dependency(0.05, solver="line_search"),
    "closed_form": dependency(0.05, solver="closed_form", divergence="softmax"),
}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def clip(model: NoiseModel, seed: int = 0, shape: tuple[int, ...] = (8, 4, 64, 64), indices=None) -> torch.Tensor:
    return clip_noise(shape, model, seed, generator(seed), indices)


def surprise(draws: torch.Tensor, covariance: torch.Tensor) -> float:
    """How unlike Gaussian rows of mean 0 and ``covariance`` the rows of ``draws`` (rows, n) are, in standard errors.

    Of whitened rows every mean, variance and covariance has an error of its own, independent of the others': in
    standard errors, the sum of their squares is χ². Three standard errors of that sum allow for all entries at once.
    """
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), draws.double(), upper=False)
    rows, count = white.shape
    wrong = white @ white.T / count - torch.eye(rows, dtype=torch.float64)
    below = wrong[torch.tril_indices(rows, rows, -1).unbind()]
    errors = torch.cat([white.mean(1), wrong.diagonal() / 2**0.5, below]) * count**0.5
    return ((errors.square().sum() - len(errors)) / (2 * len(errors)) ** 0.5).item()


def ring_covariance(correlations: list[float]) -> torch.Tensor:
    """Of a ring whose frames i and i + 1 correlate by ``correlations`` along that way alone; the last closes it."""
    count, around = len(correlations), prod(correlations)

    def entry(i: int, j: int) -> float:
        way = prod(correlations[min(i, j) : max(i, j)])
        return (way + around / way) / (1 + around)

    return torch.tensor([[entry(i, j) for j in range(count)] for i in range(count)], dtype=torch.float64)
