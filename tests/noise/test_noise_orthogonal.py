"""Candidates orthogonal to the frame before: chains of any length stay standard normal."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from coherence.noise.divergence import Divergence, blend
from coherence.noise.orthogonal import orthogonal
from coherence.noise.streams import generator, plain_noise

SHAPES = [(4, 8, 8), (4, 16, 16), (16, 24, 24)]


def frame(shape, *path):
    return plain_noise(shape, generator(0, *path))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_orthogonal_and_keeps_its_norm(shape):
    previous, candidate = frame(shape, 1, 0), frame(shape, 2, 0)
    made = orthogonal(candidate, previous).double().flatten()
    p = previous.double().flatten()
    for direction in (torch.ones_like(p), p, p.exp()):
        assert abs(made @ direction) / (made.norm() * direction.norm()) <= 1e-7
    assert made.norm().item() == pytest.approx(candidate.double().norm().item(), rel=1e-6)
    assert torch.corrcoef(torch.stack([made, candidate.double().flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kl", [0.0001, 0.01, 0.5])
def test_the_pointwise_divergence_has_a_closed_form(shape, kl):
    previous = frame(shape, 1, 1)
    p = previous.double()
    alpha = (1 - kl / (p.exp() * p).mean().item()) ** 2
    made = blend(previous, orthogonal(frame(shape, 2, 1), previous), alpha)
    assert abs((p.exp() * (p - made.double())).mean().item() - kl) <= 1e-6
    assert Divergence("pointwise", previous)(made) == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize(("kl", "size"), [(0.001, 8), (0.01, 8), (0.1, 8), (0.5, 8), (0.1, 16)])
def test_a_chain_of_256_frames_stays_standard_normal(kl, size):
    """Over clips: one frame of 8×8 alone has a standard deviation of 1 ± 0.04."""
    clips = 24
    rho = 1 - kl / sqrt(torch.e)
    stds, kurtoses = [], []
    for clip in range(clips):
        x = frame((4, size, size), clip, 0)
        for number in range(1, 256):
            x = blend(x, orthogonal(frame((4, size, size), clip, number), x), rho**2)
        flat = x.double().flatten()
        flat = flat - flat.mean()
        stds.append(flat.std().item())
        kurtoses.append(((flat**4).mean() / (flat**2).mean() ** 2 - 3).item())
    assert abs(sum(stds) / clips - 1) <= 0.03
    assert abs(sum(kurtoses) / clips) <= 0.15
