"""Candidates orthogonal to the frame before: chains of any length stay standard normal."""

from __future__ import annotations

import pytest
import torch
from coherence.noise.dependency import dependency_noise
from coherence.noise.divergence import DIVERGENCES, Divergence, blend
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


@pytest.mark.slow
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("kl", "clips"), [(0.001, 6), (0.01, 4), (0.1, 3), (0.5, 2)])
def test_256_frames_stay_standard_normal_by_every_divergence(divergence, kl, clips):
    """In float64, over clips and frames: the kurtosis of 256 independent normal values alone is -0.02 ± 0.3, so that
    of one frame says nothing. Slow chains keep a frame's, and need more clips."""
    shape, late = (4, 8, 8), []
    for clip in range(clips):
        source = torch.Generator().manual_seed(clip)

        def draw(_frame, count, source=source):
            return torch.randn(count, *shape, generator=source, dtype=torch.float64)

        frames = dependency_noise(draw(0, 1)[0], draw, [kl] * 256, divergence=divergence)
        late.append(torch.stack(list(frames)[64:]).flatten(1))
    values = torch.cat(late)
    centred = values - values.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    assert abs(variance.sqrt().mean() - 1) <= 0.03
    assert abs((centred.pow(4).mean(1) / variance.square() - 3).mean()) <= 0.15
    assert values.mean().abs() <= 3 / (clips * values.shape[1]) ** 0.5
    assert values.abs().amax(1).mean() <= 3.3
