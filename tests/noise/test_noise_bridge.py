"""Chains of noise frames through given frames, and loops: the covariances of theory, over many draws."""

from __future__ import annotations

from math import prod

import pytest
import torch
from coherence.noise.bridge import bridged, ring_correlations
from coherence.noise.streams import generator, plain_noise
from hypothesis import given
from hypothesis import strategies as st
from noise_clips import ring_covariance, surprise
from torch import Tensor

DRAWS = 60_000
"""Elements of a frame: each is a chain of its own."""


def fresh(seed: int, size: int = DRAWS):
    return lambda frame: plain_noise((size,), generator(seed, 1, frame))


def chain_covariance(correlations: list[float]) -> Tensor:
    count = len(correlations) + 1
    rows = [[prod(correlations[min(i, j) : max(i, j)]) for j in range(count)] for i in range(count)]
    return torch.tensor(rows, dtype=torch.float64)


def conditional(covariance: Tensor, known: list[int], values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the other elements of a Gaussian, given those at ``known``."""
    other = [i for i in range(len(covariance)) if i not in known]
    across = covariance[other][:, known] @ torch.linalg.inv(covariance[known][:, known])
    return across @ values, covariance[other][:, other] - across @ covariance[known][:, other]


@pytest.mark.parametrize("known", [[0], [4], [2], [0, 6], [1, 4], [0, 3, 6], [2, 3, 5]])
def test_the_frames_made_have_the_conditional_distribution_of_the_chain(known):
    correlations = [0.9, 0.5, 0.99, 0.7, 0.0, 0.95]
    values = torch.randn(len(known), generator=generator(3), dtype=torch.float64)
    frames = bridged(
        {i: torch.full((DRAWS,), float(value)) for i, value in zip(known, values, strict=True)}, correlations, fresh(0)
    )
    made = torch.stack([frame.double() for i, frame in enumerate(frames) if i not in known])
    mean, covariance = conditional(chain_covariance(correlations), known, values)
    assert surprise(made - mean[:, None], covariance) <= 3


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=6), st.data())
def test_given_frames_are_kept_bitwise(correlations, data):
    frames = len(correlations) + 1
    known = data.draw(st.sets(st.integers(0, frames - 1), min_size=1, max_size=3))
    given_frames = {i: torch.randn(8, generator=generator(5, i, 0)) for i in known}
    made = bridged(given_frames, correlations, fresh(1, 8))
    assert all(torch.equal(made[i], frame) for i, frame in given_frames.items())
    assert all(frame.isfinite().all() for frame in made)


def test_a_far_key_frame_leaves_the_free_chain():
    correlations = [0.6] * 60
    start = torch.randn(64, generator=generator(2))
    free = bridged({0: start}, correlations, fresh(4, 64))
    tied = bridged({0: start, 60: torch.ones(64)}, correlations, fresh(4, 64))
    assert torch.allclose(torch.stack(free[:30]), torch.stack(tied[:30]), atol=1e-5)
    assert not torch.allclose(free[59], tied[59], atol=0.1)


def test_frames_before_the_last_key_do_not_depend_on_how_many_follow():
    keys = {1: torch.zeros(16), 3: torch.ones(16)}
    short, long = (bridged(keys, [0.8] * n, fresh(6, 16)) for n in (4, 9))
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=False))


@pytest.mark.parametrize("neighbours", [[0.9] * 8, [0.994] * 12, [0.5] * 3, [0.9, 0.95, 0.97, 0.9, 0.93]])
def test_a_ring_has_the_covariance_of_theory_and_neighbours_correlate_as_asked(neighbours):
    rho, count = ring_correlations(neighbours), len(neighbours)
    frames = bridged({count // 2: plain_noise((DRAWS,), generator(7))}, rho, fresh(8), loop=True)
    theory = ring_covariance(rho)
    assert [theory[i, (i + 1) % count].item() for i in range(count)] == pytest.approx(neighbours, abs=1e-9)
    assert surprise(torch.stack(frames), theory) <= 3


def test_a_ring_of_equal_steps_has_the_covariance_of_the_docstring():
    count, rho = 8, ring_correlations([0.9] * 8)[0]
    k = (torch.arange(count)[:, None] - torch.arange(count)).abs().double()
    theory = (rho**k + rho ** (count - k)) / (1 + rho**count)
    torch.testing.assert_close(ring_covariance([rho] * count), theory)


def test_a_loop_that_cannot_be_closed_is_refused():
    with pytest.raises(ValueError, match="Spread the change over more frames"):
        ring_correlations([0.2, 0.999, 0.999, 0.999])


def test_a_chain_that_cannot_exist_is_refused():
    with pytest.raises(ValueError, match="cannot all be equal"):
        bridged({0: torch.zeros(4), 2: torch.ones(4)}, [1.0, 1.0], fresh(0, 4))
    with pytest.raises(ValueError, match=r"expected at least one of 0 to 3"):
        bridged({}, [0.5] * 3, fresh(0, 4))
    with pytest.raises(ValueError, match=r"frames \[7\]"):
        bridged({7: torch.zeros(4)}, [0.5] * 3, fresh(0, 4))
