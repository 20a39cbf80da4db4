"""The inversion's walk in float64, on models whose answers are known exactly."""

from itertools import pairwise

import pytest
import torch
from coherence.samplers.inversion import Step, invert, walk_eq_12
from hypothesis import given
from hypothesis import strategies as st
from inversion_runs import difference

EXACT = {"atol": 1e-12, "rtol": 1e-12}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rising(steps: int, top: float = 14.6, rho: float = 7.0) -> torch.Tensor:
    """Karras' noise levels from 0 to ``top``."""
    low, high = 0.03 ** (1 / rho), top ** (1 / rho)
    levels = torch.linspace(low, high, steps, dtype=torch.float64) ** rho
    return torch.cat([torch.zeros(1, dtype=torch.float64), levels])


def sample(x: torch.Tensor, sigmas: torch.Tensor, slope) -> torch.Tensor:
    """Euler from the noisy end of rising ``sigmas`` back to the clean one."""
    for level in range(len(sigmas) - 1, 0, -1):
        x = x + slope(x, level) * (sigmas[level - 1] - sigmas[level])
    return x


CENTRES = normal(3, 16, seed=5) * 1.5
WIDTH = 0.4


def mixture(sigmas: torch.Tensor):
    """ε of data from a mixture of three Gaussians, exactly: (x − E[x₀ | x]) / σ, at σ = 0 its limit."""

    def slope(x: torch.Tensor, level: int) -> torch.Tensor:
        sigma = sigmas[level].clamp(min=0.03)
        variance = WIDTH**2 + sigma**2
        share = (-0.5 * torch.cdist(x, CENTRES) ** 2 / variance).softmax(dim=-1)
        return sigma * (x - share @ CENTRES) / variance

    return slope


def clips() -> torch.Tensor:
    return CENTRES.repeat(8, 1) + WIDTH * normal(24, 16)


def error(steps: int, refine_iterations: int = 0) -> float:
    """Of the round trip, relative to the clip."""
    sigmas, x = rising(steps), clips()
    slope = mixture(sigmas)
    return difference(sample(invert(x, sigmas, slope, refine_iterations=refine_iterations), sigmas, slope), x)


@given(st.integers(2, 30), st.floats(0.5, 100), st.integers(0, 3))
def test_the_round_trip_of_a_constant_eps_is_exact(steps, top, refine_iterations):
    eps, x, sigmas = normal(2, 4, 3), normal(2, 4, 3, seed=1), rising(steps, top)
    noise = invert(x, sigmas, lambda x, level: eps, refine_iterations=refine_iterations)
    torch.testing.assert_close(noise, x + top * eps, **EXACT)
    torch.testing.assert_close(sample(noise, sigmas, lambda x, level: eps), x, atol=1e-12 * top, rtol=0)


def test_the_error_on_a_mixture_halves_when_steps_double():
    errors = [error(steps) for steps in (25, 50, 100, 200, 400)]
    assert errors[1] <= 0.06
    assert all(1.6 < coarse / fine < 2.4 for coarse, fine in pairwise(errors[1:]))


def test_refinement_brings_the_walk_back_where_it_began():
    errors = [error(25, refine_iterations) for refine_iterations in (0, 1, 3, 10)]
    assert all(more < less / 1.5 for less, more in pairwise(errors))
    assert error(25, 3) < errors[0] / 100


def test_refinement_reaches_noise_without_signal():
    """A zero terminal SNR, as CogVideoX has, where plain iteration hardly moves."""
    sigmas, x = torch.cat([rising(8), torch.tensor([4518.8])]).double(), clips()
    slope = mixture(sigmas)
    misses = [difference(sample(invert(x, sigmas, slope, refine_iterations=n), sigmas, slope), x) for n in (0, 5, 10)]
    assert misses[1] < misses[0] / 20
    assert misses[2] < 1e-3


def test_the_inverted_clips_are_standard_noise():
    sigmas = rising(100)
    noise = invert(clips(), sigmas, mixture(sigmas)) / sigmas[-1]
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
    assert abs(noise.mean().item()) < 0.1


@pytest.mark.parametrize("refine_iterations", [0, 1, 3])
def test_drift_is_what_a_sampling_step_back_misses(refine_iterations):
    sigmas, x, steps = rising(10), clips(), []
    slope = mixture(sigmas)
    invert(x, sigmas, slope, refine_iterations=refine_iterations, on_step=steps.append)
    for start, step in zip([x, *(step.x for step in steps)], steps, strict=False):
        back = step.x + slope(step.x, step.level) * (sigmas[step.level - 1] - sigmas[step.level])
        assert step.drift == pytest.approx(difference(back, start), rel=1e-9)


def test_the_model_is_called_once_a_step_a_refinement_and_once_more():
    calls: list[int] = []

    def slope(x: torch.Tensor, level: int) -> torch.Tensor:
        calls.append(level)
        return x

    invert(normal(2, 3), rising(4), slope, refine_iterations=2)
    assert calls == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_the_model_sees_the_filtered_latent():
    def smooth(x: torch.Tensor, level: int) -> torch.Tensor:
        return x * 0 + level if level < 2 else x

    seen: list[float] = []

    def slope(x: torch.Tensor, level: int) -> torch.Tensor:
        seen.append(x.mean().item())
        return torch.zeros_like(x)

    invert(normal(2, 3), rising(3), slope, smooth)
    assert seen == [0, 1, 1, 1]


# Eq. 12 as printed -----------------------------------------------------------------------------------------------


def test_literal_takes_the_noise_away_that_eq_12_takes_and_adds_what_it_adds():
    """Two steps by hand, in the paper's terms."""
    sigmas = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    x, z = normal(2, 3), [normal(2, 3, seed=1), normal(2, 3, seed=2)]
    drawn = iter(z)
    steps: list[Step] = []
    walk_eq_12(x, sigmas, lambda x, level: x * level, lambda _: next(drawn), on_step=steps.append)

    bar = 1 / (sigmas**2 + 1)
    alpha = bar[1:] / bar[:-1]
    y = x
    for t, added in ((1, torch.zeros_like(x)), (2, (1 - alpha[0]).sqrt() * z[1])):
        eps = y / bar[t].sqrt() * t
        y = (y - (1 - alpha[t - 1]) / (1 - bar[t]).sqrt() * eps) / alpha[t - 1].sqrt() + added
        torch.testing.assert_close(steps[t - 1].x * bar[t].sqrt(), y, **EXACT)


def test_literal_cannot_be_walked_back():
    sigmas, x = rising(50), clips()
    slope = mixture(sigmas)
    source = torch.Generator().manual_seed(0)
    noise = walk_eq_12(x, sigmas, slope, lambda _: torch.randn(x.shape, generator=source, dtype=x.dtype))
    assert difference(sample(noise, sigmas, slope), x) > 10 * error(50)
