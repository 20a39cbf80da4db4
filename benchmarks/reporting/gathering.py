"""How many more scenes or clips an experiment needs until its claims are decided."""

from __future__ import annotations

import math
from collections.abc import Sequence

from claims import GATHERED, UNDECIDED, Claim

from .assembling import Report
from .experiments import Experiment

MOST = 400
"""Units beyond which nothing is gathered: what they would decide is too small to be seen."""


def needed(claims: Sequence[Claim]) -> int:
    """Units with which the claims that can be decided would be; 0 where none is left."""
    needs = [each.needs for each in claims if each.verdict == UNDECIDED and each.unit in GATHERED]
    return max((each for each in needs if each <= MOST), default=0)


def grown(report: Report) -> list[Experiment]:
    """The report's experiments, with more scenes or clips where that would decide a claim: at most twice as many, for
    what is gathered says better how many it takes."""
    return [_grown(part.experiment, needed(part.claims), report.budget) for part in report.parts]


def _grown(experiment: Experiment, units: int, budget: str) -> Experiment:
    before = experiment.count(budget)
    count = min(2 * before, math.ceil(units / experiment.units_of_one))
    return experiment.grown(budget, count) if count > before else experiment
