"""The three divergences are what their definitions say, and the solvers find what they promise."""

from math import e, sqrt
from statistics import mean, stdev

import pytest
import torch
from coherence.noise.divergence import DIVERGENCES, INDEPENDENT, Divergence, blend
from coherence.noise.solvers import bisection, closed_form, line_search
from hypothesis import given, settings
from hypothesis import strategies as st

FRAME = (4, 64, 64)
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def definition(kind: str, p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The divergences as their definitions write them, element by element."""
    if kind == "softmax":
        log_p, log_x = p.flatten().log_softmax(0), x.flatten().log_softmax(0)
        return torch.nn.functional.kl_div(log_x, log_p, reduction="sum", log_target=True)
    drift = p.exp() * (p - x)
    return (drift - p.exp() + x.exp() if kind == "generalised" else drift).mean()


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(seed=seeds, scale=st.floats(0.1, 2))
@settings(deadline=None, max_examples=30)
def test_divergence_is_its_definition(kind: str, seed: int, scale: float) -> None:
    p, x = scale * normal(seed, 4, 8, 8), scale * normal(seed + 1, 4, 8, 8)
    assert Divergence(kind, p)(x) == pytest.approx(definition(kind, p, x).item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_of_float32_frames_is_accurate(kind: str) -> None:
    p, x = normal(0, *FRAME).float(), normal(1, *FRAME).float()
    assert Divergence(kind, p)(x) == pytest.approx(definition(kind, p.double(), x.double()).item(), abs=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_of_a_frame_from_itself_is_zero(kind: str) -> None:
    p = normal(2, *FRAME)
    assert abs(Divergence(kind, p)(p)) < 1e-12


@pytest.mark.parametrize("kind", ["generalised", "softmax"])
@given(seed=seeds, shift=st.floats(0.01, 3))
@settings(deadline=None, max_examples=30)
def test_divergence_of_different_frames_is_positive(kind: str, seed: int, shift: float) -> None:
    p = normal(seed, 64)
    assert Divergence(kind, p)(p + shift * normal(seed + 1, 64)) > 0


def test_pointwise_divergence_is_signed() -> None:
    p = normal(3, *FRAME)
    assert Divergence("pointwise", p)(p + 0.5) < 0


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(seed=seeds, alpha=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_divergence_along_the_way_is_that_of_the_blend(kind: str, seed: int, alpha: float) -> None:
    p, candidate = normal(seed, 4, 8, 8), normal(seed + 1, 4, 8, 8)
    divergence = Divergence(kind, p)
    expected = divergence(blend(p, candidate, alpha))
    assert divergence.along(candidate)(alpha) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "scale"), [("generalised", sqrt(e)), ("pointwise", sqrt(e)), ("softmax", 1.0)])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.994])
def test_expectation_is_proportional_to_one_minus_correlation(kind: str, scale: float, rho: float) -> None:
    values = []
    for seed in range(40):
        p, other = normal(2 * seed, *FRAME), normal(2 * seed + 1, *FRAME)
        values.append(Divergence(kind, p)(blend(p, other, rho**2)))
    tolerance = 4 * stdev(values) / sqrt(len(values)) + 1e-4
    assert mean(values) == pytest.approx(scale * (1 - rho), abs=tolerance)
    assert INDEPENDENT[kind] == scale


def test_generalised_divergence_is_an_order_of_magnitude_less_noisy_than_pointwise() -> None:
    """At λ = 0.01, the default, where the search works."""
    values: dict[str, list[float]] = {"generalised": [], "pointwise": []}
    for seed in range(60):
        p, other = normal(2 * seed, *FRAME), normal(2 * seed + 1, *FRAME)
        for kind, results in values.items():
            results.append(Divergence(kind, p)(blend(p, other, 0.9879)))
    assert 8 < stdev(values["pointwise"]) / stdev(values["generalised"]) < 20


def curve(seed: int, kind: str = "generalised", shape: tuple[int, ...] = FRAME):
    return Divergence(kind, normal(seed, *shape)).along(normal(seed + 1, *shape))


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(seed=seeds, target=st.floats(1e-4, 0.9))
@settings(deadline=None, max_examples=30)
def test_bisection_meets_the_target(kind: str, seed: int, target: float) -> None:
    kl = curve(seed, kind)
    alpha = bisection(kl, target)
    assert 0 <= alpha < 1
    assert kl(alpha) == pytest.approx(target, abs=min(1e-5, target / 100))


def test_bisection_tries_dyadic_fractions_only() -> None:
    alpha = bisection(curve(0), 0.01)
    assert alpha * 2**24 == int(alpha * 2**24)


@pytest.mark.parametrize("solve", [bisection, line_search])
def test_solver_keeps_nothing_where_the_candidate_is_near_enough(solve) -> None:
    assert solve(lambda alpha: 0.5 * (1 - alpha), 0.6) == 0


def algorithm_1_as_printed(kl, target: float, iterations: int) -> float:
    alpha, step = 0.0, 0.1
    for _ in range(iterations):
        ahead = min(alpha + step, 1.0)
        if abs(kl(ahead) - target) < abs(kl(alpha) - target):
            alpha = ahead
        else:
            step /= 2
    return alpha


@pytest.mark.parametrize("target", [0.002, 0.01, 0.04])
def test_line_search_does_not_freeze_as_the_papers_does(target: float) -> None:
    kl = curve(4)
    assert algorithm_1_as_printed(kl, target, 15) == pytest.approx(1)
    alpha = line_search(kl, target, 30)
    assert alpha < 1
    assert 0 <= kl(alpha) - target < 1e-4


@given(seed=seeds, target=st.floats(1e-3, 1.5), iterations=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_line_search_never_steps_past_the_target(seed: int, target: float, iterations: int) -> None:
    kl = curve(seed, shape=(4, 16, 16))
    alpha = line_search(kl, target, iterations)
    assert 0 <= alpha < 1
    assert alpha == 0 or kl(alpha) >= target


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("target", [0.01, 0.1, 0.5])
def test_closed_form_agrees_with_bisection_on_average(kind: str, target: float) -> None:
    found = [bisection(curve(2 * seed, kind), target) for seed in range(20)]
    tolerance = 4 * stdev(found) / sqrt(len(found)) + 1e-3
    assert closed_form(target, INDEPENDENT[kind]) == pytest.approx(mean(found), abs=tolerance)


@given(target=st.floats(0, 3))
@settings(deadline=None)
def test_closed_form_stays_between_zero_and_one(target: float) -> None:
    assert 0 <= closed_form(target, sqrt(e)) <= 1
    assert closed_form(0, sqrt(e)) == 1
    assert closed_form(sqrt(e), sqrt(e)) == 0
