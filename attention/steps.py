"""The steps of one sampling run, and which nodes act at any of them.

A node that acts between two percentages of sampling does nothing where no step lies between them. The error comes as
soon as this is certain: before the run, or when the run has passed that range. A sampler may call the model between two
steps and stop before the last, so model calls count too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

_ROUNDING: Final = 1e-6
"""Relative: several roundings to fp32, and far less than there is between the levels of a model."""


class NoStepError(ValueError):
    """A node acts between two percentages of sampling, and the run has no step there."""


class Acting(Protocol):
    """What acts between two percentages of sampling."""

    @property
    def asked_by(self) -> str: ...
    @property
    def start_percent(self) -> float: ...
    @property
    def end_percent(self) -> float: ...


def require_percents(start_percent: float, end_percent: float, asked_by: str) -> None:
    """ValueError if they are not 0 ≤ start ≤ end ≤ 1."""
    if not 0.0 <= start_percent <= end_percent <= 1.0:
        raise ValueError(
            f"{asked_by}: start_percent is {start_percent} and end_percent {end_percent}, "
            "expected 0 ≤ start_percent ≤ end_percent ≤ 1."
        )


def is_between(sigma: float, start_percent: float, end_percent: float, model_sampling: Any) -> bool:
    """Whether the noise level lies between two percentages of sampling, both included."""
    low, high = _levels(start_percent, end_percent, model_sampling)
    return low <= sigma <= high


class Steps:
    """``sigmas``: a run's, whichever way they go; ``acting``: who waits for a step. NoStepError if none can come.

    ``any_order``: the run does not walk its levels one after the other, so that it never has passed a range.
    """

    def __init__(
        self, sigmas: Sequence[float], acting: Iterable[Acting], model_sampling: Any, any_order: bool = False
    ) -> None:
        self._sigmas = [float(sigma) for sigma in sigmas]
        self._sampling = model_sampling
        self._waiting = list(acting) if len(self._sigmas) > 1 else []
        self._reached = -1
        self._require_some_after(0)
        if any_order:
            self._waiting = []

    def call(self, sigma: float) -> None:
        """The model is called at ``sigma``."""
        if not self._waiting:
            return
        self._waiting = [each for each in self._waiting if not self._holds(each, sigma)]
        step = next((n for n, level in enumerate(self._sigmas) if abs(level - sigma) <= 1e-5 * sigma), None)
        if step is not None:
            self._reached = max(self._reached, step)
            self._require_some_after(step)

    def end(self) -> None:
        """The run is over; one that stopped early, such as a measurement, has no more to say."""
        if self._reached >= len(self._sigmas) - 2:
            for each in self._waiting:
                raise NoStepError(self._said(each))

    def _holds(self, each: Acting, sigma: float) -> bool:
        return is_between(sigma, each.start_percent, each.end_percent, self._sampling)

    def _require_some_after(self, step: int) -> None:
        """Between this step and the last, noise levels that everybody who waits acts at."""
        spans = [sorted(pair) for pair in zip(self._sigmas[step:], self._sigmas[step + 1 :], strict=False)]
        for each in self._waiting:
            low, high = _levels(each.start_percent, each.end_percent, self._sampling)
            # no model is called at 0
            if not any(least <= high and low <= most and high > 0 for least, most in spans):
                raise NoStepError(self._said(each))

    def _said(self, each: Acting) -> str:
        levels = [sigma for sigma in self._sigmas if sigma > 0]
        levels = levels[:-1] if len(levels) == len(self._sigmas) else levels
        steps = [f"{max(0.001, round(percent_of(sigma, self._sampling), 3)):g}" for sigma in levels]  # 0 may be no step
        shown = [*steps[:12], "…", steps[-1]] if len(steps) > 13 else steps
        return (
            f"{each.asked_by}: no step of this run lies between start_percent {each.start_percent} and end_percent "
            f"{each.end_percent}, so the node would do nothing. The steps lie at {', '.join(shown)}. Widen the range "
            "to include one of them, use more steps, or give this sampler the model from before the node."
        )


def percent_of(sigma: float, model_sampling: Any) -> float:
    """The share of sampling, from 0 for pure noise to 1, at which the noise level is ``sigma``."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if model_sampling.percent_to_sigma(middle) > sigma else (low, middle)
    return high


def _levels(start_percent: float, end_percent: float, model_sampling: Any) -> tuple[float, float]:
    """The lowest and the highest noise level between two percentages; a step's level is one of them rounded to fp32."""
    high, low = (float(model_sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
    return low * (1 - _ROUNDING), high * (1 + _ROUNDING)
