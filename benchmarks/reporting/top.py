"""The top of a page: what to use when, from what was measured. For the report of the papers, and for any other page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from claims import FAILS, HOLDS, NO_GAIN, UNDECIDED, Claim, Cost, Use, verdict
from figures import table

ADVICE = {HOLDS: "use it", FAILS: "do not", NO_GAIN: "no gain", UNDECIDED: "undecided"}
"""By the verdict, which an interval alone gives."""
HEADER = ("aim", "technique", "settings", "effect, with its 95% interval", "cost", "advice")


class Row(NamedTuple):
    """A line of it: all are words as they are shown; ``verdict`` is one of :data:`claims.VERDICTS`."""

    aim: str
    technique: str
    settings: str
    effect: str
    cost: str
    verdict: str

    @property
    def advice(self) -> str:
        return ADVICE[self.verdict]


def rows_of(claims: Iterable[Claim], costs: Sequence[Cost]) -> list[Row]:
    """A row for each claim that has a use; those with one aim stand together, what helps first."""
    rows = [_row(claim, claim.use, costs) for claim in claims if claim.use]
    aims = list(dict.fromkeys(row.aim for row in rows))
    order = list(ADVICE)
    return sorted(rows, key=lambda row: (aims.index(row.aim), order.index(row.verdict)))


def _row(claim: Claim, use: Use, costs: Sequence[Cost]) -> Row:
    # by the same rule for figures that no paper makes a claim of, which have no verdict
    judged = verdict(claim.difference, claim.sign, claim.tolerance, claim.units, claim.worth)
    found = NO_GAIN if claim.is_small else judged
    effect = f"{claim.measured} {claim.figure.split(',')[0]}; {claim.units} {claim.unit}"
    taken = next((each for each in costs if use.cost and each.what.startswith(use.cost)), None)
    cost = f"{taken.measured} {taken.what.rpartition(', ')[2]}" if taken else "not measured" if use.cost else ""
    return Row(use.aim, use.technique, use.settings, effect, cost, found)


def markdown(rows: Sequence[Row]) -> str:
    """The table, or a sentence where there is nothing to advise."""
    if not rows:
        return "Nothing was measured from which advice could be drawn."
    cells = ((each.aim, each.technique, each.settings, each.effect, each.cost, _bold(each)) for each in rows)
    return table(HEADER, ([cell.replace("|", "\\|") for cell in row] for row in cells))


def _bold(row: Row) -> str:
    return row.advice if row.verdict == UNDECIDED else f"**{row.advice}**"
