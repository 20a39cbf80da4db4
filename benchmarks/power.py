"""How many clips a claim needs, what effect is worth having, and what is left of verdicts once there are many of them.

Everything here follows from a figure, its 95% interval and the number of units that it stands on, so that every claim
is treated alike, whatever its figure is: a mean of differences, a median of rounds or a rank correlation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

POWER, LEVEL = 0.8, 0.05
SAME_UNITS = 24
"""Units that must all agree to the last digit before they count as evidence that nothing differs: were one unit in
eight another, 24 would show it 95 times of 100."""
MOST_UNITS = 100_000
"""Beyond which no number is told."""

WORTH = {
    "obeys": (0.05, "one of five attributes in every fourth frame"),
    "ssim": (0.01, "the gain in consistency that IE-Adapt reports: 0.9819 to 0.9937"),
    "form": (0.02, "an outline that is a quarter of a pixel off, round a shape of 25 pixels' radius"),
    "sharpness": (0.05, "a twentieth of the slope of a drawn edge"),
    "grain": (1.0, "one level of 255, the smallest step of a screen"),
    "pixels": (4.0, "half a cell of the latent, in which the model places shapes"),
    "iou": (0.05, "a shift of about a pixel for a shape of 25 pixels' radius"),
    "psnr": (0.5, "decibels that viewers are commonly said to see"),
    "warped": (0.1, "a third of what a rendered clip has, 0.3 of 1000"),
    "steady": (0.05, "one pair of neighbours in twenty"),
    "moves": (0.1, "one clip in ten"),
    "all": (0.05, "one picture in twenty"),
    "damage": (0.01, "as of SSIM"),
    "ratio": (0.1, "a tenth"),
    "rank": (0.5, "ranks that agree about three times as often as not"),
}
"""Of each kind of figure, the least difference that is worth having, and why that much."""


SAME_KIND = {
    **dict.fromkeys(("look", "fidelity", "change"), "obeys"),
    **dict.fromkeys(("kept", "consistency"), "ssim"),
    **dict.fromkeys(("travel", "step", "track"), "pixels"),
}
"""Figures that are of another's kind."""


def worth(figure: str) -> float:
    """The least difference of this figure that is worth having."""
    return WORTH[SAME_KIND.get(figure, figure)][0]


def deviation(low: float, high: float, units: int) -> float:
    """Standard deviation of units whose mean has this 95% interval."""
    return (high - low) / 2 / _t(units - 1) * math.sqrt(units)


@cache
def needed(ratio: float, is_sameness: bool = False) -> int:
    """Units with which an interval decides in 80 of 100 studies, ``ratio`` being the effect worth having in standard
    deviations of the differences: it leaves out 0 where the effect is there, and the effect where nothing is. Of a
    claim of sameness, ``ratio`` is its tolerance, and the interval lies within. 0: more than can be told."""
    if not ratio > 0:
        return 0

    def power(units: int) -> float:
        from scipy import stats

        freedom, shift = units - 1, ratio * math.sqrt(units)
        if is_sameness:
            return 2 * float(stats.t.cdf(shift - _t(freedom), freedom)) - 1
        return float(stats.nct.sf(_t(freedom), freedom, shift))

    low, high = 2, 4
    while power(high) < POWER:
        low, high = high, 2 * high
        if high > MOST_UNITS:
            return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


@cache
def _t(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(1 - LEVEL / 2, freedom))


def p_value(distance: float, reach: float, units: int) -> float:
    """Two-sided, of a figure that is ``distance`` from what it is compared with, and whose interval reaches ``reach``
    that way: below 0.05 where the interval leaves that out. Where all units agree: as of so many coins."""
    from scipy import stats

    if math.isnan(distance) or math.isnan(reach) or units < 2:
        return 1.0
    if reach <= 0:
        return min(1.0, 2.0 ** (1 - units)) if distance else 1.0
    return float(2 * stats.t.sf(abs(distance) / reach * _t(units - 1), units - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values as Holm (1979) corrects them for their number: below 0.05 where the finding stands among all of them."""
    if not ps:
        return []
    values = np.asarray(ps, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    found = np.empty_like(values)
    found[order] = corrected
    return found.tolist()
