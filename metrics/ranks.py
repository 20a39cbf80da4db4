"""Rank correlation of two figures, and how certain it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
RESAMPLES = 4000
ORDERS = math.factorial(8)
"""Orders that an exact p goes through; with more there are as many drawn at random."""


class RankCorrelation(NamedTuple):
    """Spearman's ρ, its 95% interval with the pairs drawn again, and p by permutation; all NaN where one of the two
    figures is the same everywhere."""

    rho: float
    low: float
    high: float
    p: float


def rank_correlation(x: Array, y: Array) -> RankCorrelation:
    """Of the pairs (n,). A resample in which all are equal counts as no correlation; two pairs have no interval."""
    rho = float(spearman(x, y)) if len(x) > 1 else math.nan
    if math.isnan(rho):
        return RankCorrelation(rho, rho, rho, rho)
    if len(x) == 2:
        return RankCorrelation(rho, math.nan, math.nan, 1.0)
    return RankCorrelation(
        rho, *interval(lambda drawn: np.nan_to_num(spearman(x[drawn], y[drawn])), len(x)), permutation_p(x, y)
    )


def spearman(x: Array, y: Array) -> Array:
    """Spearman's rank correlation along the last axis; NaN where all of one are equal."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that
        return stats.pearsonr(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1), axis=-1).statistic


def permutation_p(x: Array, y: Array) -> float:
    """Of Spearman's ρ of (n,) and (n,), two-sided, by all orders of up to eight."""
    from scipy import stats

    return float(
        stats.permutation_test(
            (y,),
            lambda order, axis: spearman(np.broadcast_to(x, order.shape), order),
            permutation_type="pairings",
            vectorized=True,
            n_resamples=ORDERS,
            rng=np.random.default_rng(0),
        ).pvalue
    )


def interval(statistic: Callable[..., Array], *units: int) -> tuple[float, float]:
    """SciPy's BCa bootstrap interval (Efron 1987) of ``statistic`` of samples of ``units``, at 95%.

    ``statistic`` takes for each sample the numbers (..., n) of the units that were drawn. The interval is as wide as
    Student's t would have it (Hesterberg 2015, The American Statistician 69(4)): at its plain level of 95% it covers
    but 86% with 6 units. Where all resamples agree too well for BCa, the percentiles of the same resamples stand in.
    """
    from scipy import stats

    if (fewest := min(units)) < 2:
        return math.nan, math.nan
    tail = stats.norm.cdf(stats.t.ppf(0.025, fewest - 1) * math.sqrt(fewest / (fewest - 1)))
    samples = [np.arange(count) for count in units]
    asked: dict[str, Any] = {"confidence_level": min(1 - 2 * tail, 1 - 1e-4), "vectorized": True}

    def take(*drawn: Array, axis: int) -> Array:
        return statistic(*drawn)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is degenerate
        rng = np.random.default_rng(0)
        found = stats.bootstrap(samples, take, method="BCa", n_resamples=RESAMPLES, rng=rng, **asked)
        if np.isnan(found.confidence_interval).any():
            asked |= {"bootstrap_result": found, "n_resamples": 0}
            found = stats.bootstrap(samples, take, method="percentile", **asked)
    low, high = map(float, found.confidence_interval)
    return low, high
