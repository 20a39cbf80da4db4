"""Temporal momentum and cross-frame attention against the papers' recursions, in float64."""

import pytest
import torch
import torch.nn.functional as F
from coherence.techniques.cross_frame import CrossFrame, source_frames, take_from_frames
from coherence.techniques.momentum import TemporalMomentum, average_over_frames, momentum_matrix
from hypothesis import given
from hypothesis import strategies as st
from momentum_runs import clip, run


def recursion(x: torch.Tensor, mu: list[float], branches: int) -> torch.Tensor:
    """K̈ as the paper writes it, a frame at a time."""
    averaged = []
    for branch in x.chunk(branches):
        running = branch[0]
        averaged.append(running)
        for frame, weight in zip(branch[1:], mu[1:], strict=True):
            running = weight * running + (1 - weight) * frame
            averaged.append(running)
    return torch.stack(averaged)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-5
    scale = expected.abs().max().clamp(min=1)
    assert (actual - expected).abs().max() <= tolerance * scale


mus = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(mus, st.integers(1, 3))
def test_matrix_form_is_the_recursion(mu, branches):
    _, k, _ = clip(len(mu), branches)
    weights = momentum_matrix(torch.tensor(mu, dtype=torch.float64))
    assert_close(average_over_frames(k, weights), recursion(k, mu, branches))


@given(mus)
def test_weights_are_causal_and_sum_to_one(mu):
    weights = momentum_matrix(torch.tensor(mu, dtype=torch.float64))
    assert torch.equal(weights, weights.tril())
    assert_close(weights.sum(1), torch.ones(len(mu), dtype=torch.float64))


@given(st.floats(0, 1), st.integers(2, 9))
def test_constant_mu_has_the_closed_form(mu, frames):
    weights = momentum_matrix(torch.full((frames,), mu, dtype=torch.float64))
    for i in range(frames):
        closed = [mu**i] + [(1 - mu) * mu ** (i - j) for j in range(1, i + 1)]
        assert_close(weights[i, : i + 1], torch.tensor(closed, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mu_zero_is_self_attention(dtype):
    q, k, v = clip(6, dtype=dtype)
    assert_close(run(TemporalMomentum(0.0), q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mu_one_is_attention_to_the_first_frame(dtype):
    q, k, v = clip(6, dtype=dtype)
    assert_close(run(TemporalMomentum(1.0), q, k, v), run(CrossFrame("first"), q, k, v))


@pytest.mark.parametrize("technique", [TemporalMomentum(0.7), *map(CrossFrame, ["first", "previous"])])
def test_one_frame_is_plain_attention_bitwise(technique):
    q, k, v = clip(1)
    assert torch.equal(run(technique, q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("technique", [TemporalMomentum(0.7), *map(CrossFrame, ["first", "previous"])])
def test_identical_frames_are_left_alone(technique):
    q, k, v = (x[:2].repeat_interleave(5, dim=0) for x in clip(6))
    assert_close(run(technique, q, k, v), F.scaled_dot_product_attention(q, k, v))


techniques = [TemporalMomentum(0.7), *map(CrossFrame, ["first", "previous", "first_and_previous"])]


@pytest.mark.parametrize("technique", techniques)
def test_a_frame_does_not_depend_on_later_frames(technique):
    q, k, v = clip(6, branches=1)
    whole = run(technique, q, k, v, branches=1)
    for x in (q, k, v):
        x[4:] += 3.0
    assert_close(run(technique, q, k, v, branches=1)[:4], whole[:4])


@pytest.mark.parametrize("technique", techniques)
def test_branches_never_mix(technique):
    q, k, v = clip(4)
    both = run(technique, q, k, v)
    alone = [run(technique, *(x[rows] for x in (q, k, v)), branches=1) for rows in (slice(0, 4), slice(4, 8))]
    assert_close(both, torch.cat(alone))


def test_schedule_sets_mu_frame_by_frame():
    q, k, v = clip(5)
    mu = [1.0, 0.75, 0.5, 0.25, 0.0]
    expected = F.scaled_dot_product_attention(q, *(recursion(x, mu, 2) for x in (k, v)))
    assert_close(run(TemporalMomentum(0.98, "0:1, 4:0"), q, k, v), expected)


def test_averaging_half_precision_accumulates_in_float32():
    x = torch.ones(16, 3, dtype=torch.float16) * 1000
    weights = momentum_matrix(torch.full((16,), 0.98, dtype=torch.float64))
    assert (average_over_frames(x, weights) - 1000).abs().max() <= 0.5


def test_cross_frame_takes_keys_from_the_frames_it_says():
    x = torch.arange(4.0).reshape(4, 1, 1)
    taken = {keys: take_from_frames(x, source_frames(keys, 4)).flatten(1).tolist() for keys in ("first", "previous")}
    assert taken == {"first": [[0], [0], [0], [0]], "previous": [[0], [0], [1], [2]]}
    both = take_from_frames(x, source_frames("first_and_previous", 4))
    assert both.flatten(1).tolist() == [[0, 0], [0, 0], [0, 1], [0, 2]]
