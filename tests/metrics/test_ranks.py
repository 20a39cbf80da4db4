"""Rank correlation, beside SciPy's own."""

import math

import numpy as np
import pytest
from coherence.metrics.ranks import rank_correlation
from scipy import stats


@pytest.mark.parametrize("seed", range(3))
def test_rho_is_scipys_and_lies_in_its_interval(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    found = rank_correlation(x, y)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    assert found.p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.05)


def test_p_of_few_layers_is_exact():
    x = np.arange(4.0)
    assert rank_correlation(x, x).p == pytest.approx(2 / math.factorial(4))


def test_what_is_the_same_everywhere_has_no_correlation():
    assert all(math.isnan(each) for each in rank_correlation(np.arange(5.0), np.ones(5)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pairs_have_what_can_be_told(count):
    found = rank_correlation(np.arange(float(count)), np.arange(float(count)))
    assert math.isnan(found.rho) == (count < 2)
    assert math.isnan(found.low) == (count < 3)
