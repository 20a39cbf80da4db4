"""What figures say: one interval, one rank correlation, one kind of claim, one verdict.

Some tables were published before this file was written. Their intervals are plain percentiles, as the tables say, or
Student's t in the README. All others have :func:`coherence.metrics.ranks.interval`.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from power import SAME_UNITS, deviation, needed, p_value
from torch import Tensor

FEWEST = 6
"""Units below which nothing is decided."""
HOLDS, FAILS, NO_GAIN, UNDECIDED = "holds", "does not", "no gain", "undecided"
VERDICTS = (HOLDS, FAILS, NO_GAIN, UNDECIDED)
Array = np.ndarray


class Estimate(NamedTuple):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def estimate(values: Tensor, of: Callable[..., Array] = np.mean) -> Estimate:
    """The mean of ``values`` (units, ...), or another figure ``of`` them, with its interval.

    Units are independent, such as scenes; what of a unit follows on the first axis goes with it as its mean. NaN counts
    as not measured.
    """
    measured = units_of(values)
    if not len(measured):
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(float(of(measured)), *_ranks().interval(lambda drawn: of(measured[drawn], axis=-1), len(measured)))


def units_of(values: Tensor) -> Array:
    """Of every unit that was measured one figure."""
    units = values.double()[:, None].flatten(1).nanmean(1)
    return units[~units.isnan()].numpy()


# Rank correlation ----------------------------------------------------------------------------------------------------


def rank_correlation(entropy: Tensor, damage: Tensor) -> dict[str, Any]:
    """How the damage of layers goes with their entropy; ``entropy``, ``damage``: (scenes, layers).

    Of the means over scenes: ``rho``; ``by_scenes``, its interval with scenes resampled: would other pictures of this
    model say the same; ``by_layers``, with layers resampled as well: would other layers; ``p``, by all orders of up to
    eight layers. A resample in which all are equal counts as no correlation.
    """
    ranks = _ranks()
    figures = entropy.double().numpy(), damage.double().numpy()
    scenes, layers = damage.shape
    x, y = (each.mean(0) for each in figures)

    def by_scenes(drawn: Array) -> Array:
        return np.nan_to_num(ranks.spearman(*(each[drawn].mean(-2) for each in figures)))

    def by_layers(drawn: Array, chosen: Array) -> Array:
        shape = np.broadcast_shapes(drawn.shape[:-1], chosen.shape[:-1])
        chosen = np.broadcast_to(chosen, (*shape, chosen.shape[-1]))
        means = (np.broadcast_to(each[drawn].mean(-2), (*shape, layers)) for each in figures)
        return np.nan_to_num(ranks.spearman(*(np.take_along_axis(each, chosen, -1) for each in means)))

    rho = float(ranks.spearman(x, y))
    if math.isnan(rho):
        return {"rho": rho, "by_scenes": (rho, rho), "by_layers": (rho, rho), "p": rho}
    by = {"by_scenes": ranks.interval(by_scenes, scenes), "by_layers": ranks.interval(by_layers, scenes, layers)}
    return {"rho": rho, **by, "p": ranks.permutation_p(x, y)}


def _ranks() -> Any:
    """Once the harness has made the pack known."""
    return importlib.import_module("coherence.metrics.ranks")


# Words ---------------------------------------------------------------------------------------------------------------


def number(value: float, form: str) -> str:
    """``value`` with a true minus sign; zero has no sign, and what is not there is a dash."""
    text = format(value, form)
    text = text if any(digit in text for digit in "123456789") else text.lstrip("+-")
    return "–" if math.isnan(value) else text.replace("-", "−")


def between(low: float, high: float, form: str) -> str:
    """``−0.01 to +0.30``."""
    return "–" if math.isnan(low) else f"{number(low, form)} to {number(high, form)}"


def shown(found: Estimate, form: str) -> str:
    """``+0.12 (−0.01 to +0.30)``."""
    return f"{number(found.value, form)} ({between(found.low, found.high, form)})"


# Claims --------------------------------------------------------------------------------------------------------------


def verdict(found: Estimate, sign: int, tolerance: float = 0.0, units: int = FEWEST, worth: float | None = None) -> str:
    """What an interval says of the claim that its figure is above 0 (``sign`` 1), below (−1), or, with ``sign`` 0, no
    farther from it than ``tolerance``. ``worth``: the effect worth having; an interval that leaves it out, but not 0,
    says that there is no such gain. Units that do not differ at all must be many to say so."""
    if units < FEWEST or math.isnan(found.low) or math.isnan(found.high):
        return UNDECIDED
    is_enough = found.low < found.high or units >= SAME_UNITS
    if sign == 0:
        if max(-found.low, found.high) <= tolerance:
            return HOLDS if is_enough else UNDECIDED
        return FAILS if found.low > tolerance or found.high < -tolerance else UNDECIDED
    low, high = sorted((sign * found.low, sign * found.high))
    if low > 0:
        return HOLDS
    if high < 0:
        return FAILS
    return NO_GAIN if worth and high < worth and is_enough else UNDECIDED


@dataclass(frozen=True)
class Use:
    """What a reader may do with a claim's figure: the line that it gives the report's first table."""

    aim: str
    technique: str
    settings: str
    cost: str = ""
    """How the text of the :class:`Cost` begins that says what it takes."""


@dataclass(frozen=True)
class Claim:
    """A claim, and the figure that speaks for or against it."""

    where: str
    """In the paper; "ours" of a claim that no paper makes."""
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
    worth: float | None = None
    """The least difference worth having; of claims of sameness it is the tolerance."""
    use: Use | None = None

    @classmethod
    def of(cls, where: str, text: str, figure: str, values: Tensor, form: str, sign: int, **more: Any) -> Claim:
        """By the mean of ``values`` (units, ...)."""
        return cls(where, text, figure, estimate(values), form, len(units_of(values)), sign, **more)

    @property
    def difference(self) -> Estimate:
        """From what it is compared with."""
        return Estimate(*(each - self.beside for each in self.found))

    @property
    def verdict(self) -> str:
        if not self.is_papers:
            return ""
        return verdict(self.difference, self.sign, self.tolerance, self.units, self.worth)

    @property
    def is_small(self) -> bool:
        """Whether it holds, but by less than is worth having."""
        _, low, high = self.difference
        return self.verdict == HOLDS and self.sign != 0 and max(abs(low), abs(high)) < (self.worth or 0.0)

    @property
    def p(self) -> float:
        """Of its verdict, before :func:`power.holm`; of what is undecided, the least of those that could decide it."""
        (value, low, high), sign = self.difference, self.sign
        if self.units < FEWEST or (low == high and self.verdict == UNDECIDED):
            return 1.0
        if sign == 0:
            if abs(value) >= self.tolerance:
                return p_value(abs(value) - self.tolerance, value - low if value > 0 else high - value, self.units)
            sides = (self.tolerance - value, high - value), (self.tolerance + value, value - low)
            return max(p_value(*side, self.units) for side in sides)
        plain = p_value(value, value - low if value > 0 else high - value, self.units)
        if self.verdict in (HOLDS, FAILS) or not self.worth:
            return plain
        short = sign * (self.worth * sign - value)
        none = p_value(short, high - value if sign > 0 else value - low, self.units) if short > 0 else 1.0
        return none if self.verdict == NO_GAIN else min(plain, none)

    @property
    def needs(self) -> int:
        """Units that would decide it in 80 of 100 studies, given how these differ; 0 where that cannot be told."""
        (value, low, high), least = self.difference, self.worth if self.sign else self.tolerance
        if not least or self.units < 2 or math.isnan(low):
            return 0
        if low == high:
            return SAME_UNITS
        enough = needed(round(least / deviation(low, high, self.units), 3), is_sameness=not self.sign)
        if self.verdict != UNDECIDED or not enough or self.units < enough:
            return enough
        # These were enough, but the effect is neither 0 nor as large as is worth having.
        reach, value = (high - low) / 2, value * (self.sign or 1)
        return math.ceil(self.units * (reach / max(abs(value), abs(least - abs(value)))) ** 2) + 1

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
    def basis(self) -> str:
        """On what the figure stands, and why there is no clear verdict where the interval does not say it."""
        on = f"{self.units} {self.unit.removesuffix('s') if self.units == 1 else self.unit}"
        if self.is_papers and self.found.low == self.found.high == self.beside and self.units >= FEWEST:
            on += f": the same in all {self.unit}"
        elif self.units < FEWEST:
            on += f": fewer than {FEWEST} {self.unit}"
        if self.is_small:
            return f"{on}; clear, but less than is worth having"
        if self.verdict != UNDECIDED:
            return on
        if self.unit not in GATHERED:
            return f"{on}, of which there are no more"
        if not self.needs:
            return on
        return f"{on}; {about(max(self.needs, FEWEST))} would decide"

    @property
    def worth_shown(self) -> str:
        """The effect worth having, in the figure's form."""
        return number(self.worth, self.form.lstrip("+")) if self.worth and self.is_papers and self.sign else ""


GATHERED = ("clips", "prompts", "rounds", "noises")
"""Units of which a study can have more."""


def about(count: int) -> str:
    """A number of units with two figures."""
    return f"{count}" if count < 100 else f"about {float(f'{count:.2g}'):.0f}"


@dataclass(frozen=True)
class Cost:
    """What something takes, beside what it should take and what others take."""

    what: str
    measured: str
    theory: str = ""
    peer: str = ""


@dataclass(frozen=True)
class Table:
    """Figures that no claim stands behind, a row each; the cells of all rows are as many as the header's."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""


def count(claims: Iterable[Claim]) -> Counter[str]:
    """How often each verdict was found."""
    return Counter(claim.verdict for claim in claims if claim.is_papers)
