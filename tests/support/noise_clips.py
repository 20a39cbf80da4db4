"""Clips of noise by every model, for the tests of noise."""

from collections.abc import Callable
from functools import partial

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
