"""How many more scenes or clips an experiment needs until its claims are decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from claims import GATHERED, UNDECIDED, Claim

from .assembling import Report
from .experiment import Experiment
from .running import asked_before

LEAST, MOST = 24, 400
"""Units that every study gathers; and those beyond which nothing is gathered, for what they would decide is too small
to be seen."""


def needed(claims: Sequence[Claim]) -> int:
    """Units with which the claims that can be decided would be."""
    needs = [each.needs for each in claims if each.verdict == UNDECIDED and each.unit in GATHERED]
    return max((each for each in needs if each <= MOST), default=0)


def grown(report: Report) -> list[Experiment]:
    """The report's experiments, with more scenes or clips where that would decide a claim: at most twice as many, for
    what is gathered says better how many it takes. One that gave nothing stays as it is."""
    return [
        _grown(part.experiment, max(needed(part.claims), LEAST), report.budget) if part.claims else part.experiment
        for part in report.parts
    ]


def _grown(experiment: Experiment, units: int, budget: str) -> Experiment:
    before = experiment.count(budget)
    count = min(2 * before, math.ceil(units / experiment.units_of_one))
    return experiment.grown(budget, count) if count > before else experiment


def as_before(experiment: Experiment, folder: Path, budget: str) -> Experiment:
    """With as many scenes or clips as an earlier run had in the end."""
    before = asked_before(experiment, folder)
    if experiment.counted_by not in before:
        return experiment
    count = int(before[before.index(experiment.counted_by) + 1])
    return experiment.grown(budget, count) if count > experiment.count(budget) else experiment
