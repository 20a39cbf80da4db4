"""A Brownian path of noise: what a stochastic sampler draws between two noise levels.

A draw between two levels is the path's increment, scaled to unit variance. Draws over intervals that follow one another
are independent; those over intervals that overlap share what they have in common, as solvers with substeps expect
(dpmpp_sde). If the fresh noise is coherent over the frames of a clip, so is every draw: it is a sum of such noise.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from torch import Tensor

Fresh = Callable[[float], Tensor]
"""The level that a draw begins at → standard normal noise, other noise at every call."""

_REMEMBERED = 4
"""Levels that a solver may come back to within a step."""


class BrownianPath:
    def __init__(self, fresh: Fresh) -> None:
        self._fresh = fresh
        self._at: dict[float, Tensor | float] = {}
        self._drawn: set[tuple[float, float]] = set()

    def between(self, start: float, end: float) -> Tensor:
        """Standard normal noise for the way from one level to another; for the same way again, other noise."""
        if start == end or (start, end) in self._drawn:
            return self._fresh(start)
        self._drawn.add((start, end))
        if start not in self._at:
            self._at[start] = self._value(start, start)[0] if self._at else 0.0
        fresh = None
        if end not in self._at:
            self._at[end], fresh = self._value(end, start)
        there, here = self._at[end], self._at[start]
        self._forget_all_but(start, end)
        if fresh is not None:
            return fresh
        increment = there - here
        assert isinstance(increment, Tensor)
        return increment / sqrt(abs(end - start))

    def _value(self, level: float, start: float) -> tuple[Tensor, Tensor | None]:
        """The path at a ``level`` that is not known; and the fresh noise, if it is all of the way from ``start``."""
        below = max((x for x in self._at if x < level), default=None)
        above = min((x for x in self._at if x > level), default=None)
        fresh = self._fresh(start)
        if below is not None and above is not None:
            share = (level - below) / (above - below)
            spread = sqrt((level - below) * (above - level) / (above - below))
            return self._at[below] * (1 - share) + self._at[above] * share + fresh * spread, None
        near = below if above is None else above
        assert near is not None
        return self._at[near] + fresh * sqrt(abs(level - near)), fresh if near == start else None

    def _forget_all_but(self, *latest: float) -> None:
        for level in latest:
            self._at[level] = self._at.pop(level)
        while len(self._at) > _REMEMBERED:
            del self._at[next(iter(self._at))]
