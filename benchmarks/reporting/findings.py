"""What a report says: claims of papers, each with a verdict that its interval gives, and costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from scipy.stats import norm, t
from studies import Estimate, number, resamples, shown
from torch import Tensor
from zs2_report import FEWEST

HOLDS, FAILS, UNDECIDED = "holds", "does not", "undecided"
VERDICTS = (HOLDS, FAILS, UNDECIDED)


def mean(values: Tensor) -> Estimate:
    """The mean of ``values`` (units, ...) and its 95% interval: a percentile bootstrap over units, with percentiles as
    far out as Student's t would have them (Hesterberg 2015, The American Statistician 69(4), “expanded percentiles”).
    Plain ones, as in the studies' tables and charts, cover but 86% with 6 units."""
    units = values.double().flatten(1).nanmean(1) if values.ndim > 1 else values.double()
    if (count := len(units)) < 2:
        return Estimate(units.mean().item(), math.nan, math.nan)
    share = norm.cdf(t.ppf(0.025, count - 1) * math.sqrt(count / (count - 1)))
    bounds = units[resamples(count)].mean(1).quantile(torch.tensor([share, 1 - share], dtype=torch.float64))
    return Estimate(units.mean().item(), *bounds.tolist())


def verdict(found: Estimate, sign: int, tolerance: float = 0.0, units: int = FEWEST) -> str:
    """What an interval says of the claim that its figure is above 0 (``sign`` 1), below (−1), or, with ``sign`` 0, no
    farther from it than ``tolerance``."""
    if units < FEWEST or math.isnan(found.low) or math.isnan(found.high):
        return UNDECIDED
    if sign == 0:
        if max(-found.low, found.high) <= tolerance:
            return HOLDS
        return FAILS if found.low > tolerance or found.high < -tolerance else UNDECIDED
    low, high = sorted((sign * found.low, sign * found.high))
    if low > 0:
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """A claim, and the figure that speaks for or against it."""

    where: str
    """In the paper."""
    text: str
    figure: str
    """What was measured."""
    found: Estimate
    form: str
    """How the figure is written."""
    units: int
    """Independent ones, ``unit`` by name."""
    sign: int
    beside: float = 0.0
    """What the figure is compared with; 1 for ratios."""
    tolerance: float = 0.0
    """Of ``sign`` 0."""
    unit: str = "clips"
    is_papers: bool = True
    """Otherwise none of its claims, but something to know beside them: it gets no verdict."""

    @property
    def difference(self) -> Estimate:
        """From what it is compared with."""
        return Estimate(*(each - self.beside for each in self.found))

    @property
    def verdict(self) -> str:
        return verdict(self.difference, self.sign, self.tolerance, self.units) if self.is_papers else ""

    @property
    def measured(self) -> str:
        return shown(self.found, self._precise_form)

    @property
    def _precise_form(self) -> str:
        """With so many decimals that a clear difference does not look like none."""
        sign, decimals, kind = self.form.partition(".")[0], int(self.form[-2]), self.form[-1]
        nearest = min(self.found.low, self.found.high, key=lambda bound: abs(bound - self.beside))
        while (
            decimals < 6
            and self.difference.is_clear
            and float(f"{nearest:.{decimals + 2 * (kind == '%')}f}") == self.beside
        ):
            decimals += 1
        return f"{sign}.{decimals}{kind}"

    @property
    def expected(self) -> str:
        """What the claim says of the figure."""
        if not self.is_papers:
            return ""
        form = self.form.lstrip("+")
        if self.sign == 0:
            around = f"{number(self.beside, form)} " if self.beside else ""
            return f"{around}± {number(self.tolerance, form)}"
        return f"{'>' if self.sign > 0 else '<'} {self.beside:g}"

    @property
    def remark(self) -> str:
        """Why there is no clear verdict, where there is more to say than the interval does."""
        if self.units < FEWEST:
            return f"fewer than {FEWEST} {self.unit}"
        if self.is_papers and self.sign and self.found.low == self.found.high == self.beside:
            return f"the same in all {self.unit}"
        return ""


@dataclass(frozen=True)
class Cost:
    """What something takes, beside what it should take and what others take."""

    what: str
    measured: str
    theory: str = ""
    peer: str = ""


@dataclass
class Findings:
    """Of one experiment."""

    claims: list[Claim] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)


def count(claims: Iterable[Claim]) -> Counter[str]:
    """How often each verdict was found."""
    return Counter(claim.verdict for claim in claims if claim.is_papers)
