"""What a picture of the demo's world shows: one thing or two, in colours, on a background, plain or with a pattern."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..shapes import COLOURS, position
from .things import THINGS

PATTERNS = ("plain", "stripes", "dots", "gradient")
RADII = {"small": 21.0, "large": 31.0}  # pixels
MARGIN = 11.0  # pixels between a thing and the frame
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
RELATIONS = ("left of", "right of", "above", "below")
_PLACES = {
    "left of": ("middle", "left"),
    "right of": ("middle", "right"),
    "above": ("top", "centre"),
    "below": ("bottom", "centre"),
}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
APART = 0.3  # least distance in RGB of a thing's colours from those behind it


@dataclass(frozen=True)
class Surface:
    """``colour`` alone, or with ``second``: the other stripes, the dots, or the lower end of a gradient."""

    colour: str
    pattern: str = "plain"
    second: str = ""

    @property
    def colours(self) -> tuple[str, ...]:
        return (self.colour, self.second) if self.second else (self.colour,)


@dataclass(frozen=True)
class Thing:
    kind: str
    surface: Surface
    size: str
    row: str
    column: str

    @property
    def position(self) -> str:
        return position(self.row, self.column)

    @property
    def place(self) -> tuple[float, float]:
        """x and y in pixels."""
        away = 64.0 - RADII[self.size] - MARGIN
        return 64.0 + away * (COLUMNS.index(self.column) - 1), 64.0 + away * (ROWS.index(self.row) - 1)


@dataclass(frozen=True)
class Scene:
    """One thing, or two of which the first is ``relation`` the second."""

    things: tuple[Thing, ...]
    background: Surface
    relation: str = ""


def random_scene(rng: random.Random, pairs: float = 0.15, backgrounds: float = 0.2, fills: float = 0.1) -> Scene:
    """``pairs``: the share of scenes with two things; ``backgrounds``, ``fills``: of those with a pattern."""
    pair = rng.random() < pairs
    background = _surface(rng, PATTERNS[1:] if rng.random() < backgrounds else PATTERNS[:1], [])
    patterns = ("stripes",) if not pair and rng.random() < fills else ("plain",)
    if not pair:
        surface = _surface(rng, patterns, [background])
        return Scene(
            (_thing(rng, rng.choice(tuple(RADII)), (rng.choice(ROWS), rng.choice(COLUMNS)), surface),), background
        )
    relation = rng.choice(RELATIONS)
    things = tuple(
        _thing(rng, "small", _PLACES[side], _surface(rng, patterns, [background]))
        for side in (relation, _OPPOSITE[relation])
    )
    return Scene(things, background, relation)


def _thing(rng: random.Random, size: str, place: tuple[str, str], surface: Surface) -> Thing:
    return Thing(rng.choice(THINGS), surface, size, *place)


def _surface(rng: random.Random, patterns: tuple[str, ...], behind: list[Surface]) -> Surface:
    """One whose colours stand out from those ``behind`` it and, but for a gradient's, from each other."""
    pattern = rng.choice(patterns)
    visible = [name for name in COLOURS if all(_distance(name, surface) >= APART for surface in behind)]
    colours = rng.sample(visible, 1 if pattern == "plain" else 2)
    return Surface(colours[0], pattern, *colours[1:])


def _distance(name: str, surface: Surface) -> float:
    """In RGB, of a colour from the nearest that ``surface`` shows."""
    shown: list[tuple[float, ...]] = [COLOURS[each] for each in surface.colours]
    if surface.pattern == "gradient":
        first, last = shown
        shown = [tuple(a + t / 8 * (b - a) for a, b in zip(first, last, strict=True)) for t in range(9)]
    return min(sum((a - b) ** 2 for a, b in zip(COLOURS[name], each, strict=True)) ** 0.5 for each in shown)
