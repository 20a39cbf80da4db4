"""The noise models themselves: distances, correlations and marginals of the frames they yield."""

import random
from functools import partial
from math import e, sqrt

import numpy as np
import pytest
import torch
from coherence.noise.dependency import SOLVERS, dependency_noise
from coherence.noise.divergence import DIVERGENCES, INDEPENDENT, Divergence
from coherence.noise.measure import correlation, neighbour_alpha, neighbour_kl
from coherence.noise.priors import iid, mixed, progressive
from coherence.noise.streams import NoiseModel
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_clips import clip, dependency, models


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(seed=st.integers(0, 2**64 - 1), kl=st.floats(1e-3, 0.9))
@settings(deadline=None, max_examples=15)
def test_every_frame_lies_the_chosen_divergence_from_the_one_before(divergence: str, seed: int, kl: float) -> None:
    achieved = neighbour_kl(clip(dependency(kl, divergence=divergence), seed, (4, 4, 64, 64)), divergence)
    torch.testing.assert_close(achieved, torch.full_like(achieved, kl), rtol=0, atol=1e-4)


def test_every_frame_has_its_own_divergence() -> None:
    schedule = [0.0, 0.3, 0.01, 0.0, 0.8, 0.05, 0.1, 0.002]
    achieved = neighbour_kl(clip(dependency(schedule.__getitem__)))
    torch.testing.assert_close(achieved, torch.tensor(schedule[1:], dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_kl_zero_is_a_still_clip(solver: str) -> None:
    frames = clip(dependency(0.0, solver=solver))
    assert all(torch.equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_kl_of_independent_frames_or_more_is_iid_noise(solver: str, divergence: str) -> None:
    model = dependency(INDEPENDENT[divergence], divergence=divergence, solver=solver)
    assert torch.equal(clip(model), clip(iid))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("seed", range(4))
def test_marginals_of_eight_frames_are_standard_normal(divergence: str, seed: int) -> None:
    flat = clip(dependency(divergence=divergence), seed).flatten(1)
    assert flat.mean(1).abs().max() <= 0.04
    assert (flat.std(1) - 1).abs().max() <= 0.02


@pytest.mark.parametrize("seed", range(8))
def test_neighbour_correlation_is_one_minus_kl_over_root_e(seed: int) -> None:
    neighbours = correlation(clip(dependency(), seed)).diagonal(1)
    assert (neighbours - (1 - 0.01 / sqrt(e))).abs().max() <= 0.003


@pytest.mark.parametrize("kl", [0.01, 0.1, 0.5])
def test_closed_form_and_bisection_keep_the_same_share(kl: float) -> None:
    alphas = [neighbour_alpha(correlation(clip(dependency(kl, solver=s)))) for s in ("bisection", "closed_form")]
    torch.testing.assert_close(*alphas, rtol=0, atol=0.03)


def test_line_search_moves_at_the_papers_default() -> None:
    """Algorithm 1 as printed freezes here: every frame equal, KL 0."""
    achieved = neighbour_kl(clip(dependency(0.01, solver="line_search", line_iterations=15)))
    assert achieved.min() >= 0.0099
    assert achieved.max() <= 0.02


def test_search_takes_the_candidate_nearest_the_target() -> None:
    pool = torch.randn(10, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    first = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(6))
    search = {"orthogonal": False, "candidates": 10}
    _, searched = dependency_noise(first, lambda frame, count: pool[:count], [0, 1.2], **search)
    distances = [abs(Divergence("generalised", first)(candidate) - 1.2) for candidate in pool]
    nearest = distances.index(min(distances))
    assert nearest > 0
    _, from_nearest = dependency_noise(first, lambda frame, count: pool[nearest, None], [0, 1.2], orthogonal=False)
    assert torch.equal(searched, from_nearest)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_mixed_noise_correlates_any_two_frames_by_alpha(alpha: float) -> None:
    measured = correlation(clip(partial(mixed, alpha=alpha)))
    expected = torch.full((8, 8), alpha, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(measured, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_progressive_noise_correlates_frames_by_their_distance(alpha: float) -> None:
    measured = correlation(clip(partial(progressive, alpha=alpha)))
    distance = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    expected = torch.tensor(alpha, dtype=torch.float64) ** (distance.double() / 2)
    torch.testing.assert_close(measured, expected, rtol=0, atol=0.03)


@models
def test_prior_marginals_are_standard_normal(model: NoiseModel) -> None:
    flat = clip(model, 1).flatten(1)
    assert flat.mean(1).abs().max() <= 0.04
    assert (flat.std(1) - 1).abs().max() <= 0.02


@models
def test_same_seed_gives_the_same_bits(model: NoiseModel) -> None:
    assert torch.equal(clip(model, 7), clip(model, 7))
    assert not torch.equal(clip(model, 7), clip(model, 8))


@models
def test_bits_do_not_depend_on_threads_default_device_or_default_dtype(model: NoiseModel) -> None:
    expected, threads = clip(model, 3), torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            measured = clip(model, 3)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert torch.equal(measured, expected)


@models
def test_global_random_states_stay_untouched(model: NoiseModel) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    clip(model, 11)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == before[2]


@pytest.mark.parametrize("option", ["divergence", "solver"])
def test_unknown_option_is_refused_by_name(option: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown {option} 'best': choose one of"):
        clip(dependency(**{option: "best"}))


def test_correlation_of_constant_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="Frame 1 of the noise is constant"):
        correlation(torch.stack([torch.arange(4.0), torch.ones(4)]))
