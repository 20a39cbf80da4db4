"""Reads pictures of the demo's world back into scenes: measured, not learned.

The background is what fits the frame, things are what differs from it. Their coverage is the projection of every
pixel onto the line from the colour behind it to the thing's; the kind is the closest of all outlines, of the same
centroid and area, upright or a little turned.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .painting import DOT, DOTS, weights
from .scenes import COLOURS, COLUMNS, MARGIN, RADII, RELATIONS, ROWS, Scene, Surface, Thing
from .things import REACH, SIZE, THINGS, look_up, turned

FRAME = 6  # pixels along the border that no thing reaches
DIFFERENT = 0.2  # in RGB; a thing's colours are at least 0.3 from those behind it
LEAST = 60.0  # pixels of a thing's area
GAP = 3  # pixels to either side of the middle that stay empty between two things
GRID, SPAN = 40, 2.2  # cells of a normalised outline, and half its window in units of √area
TILTS = (-0.14, -0.07, 0.0, 0.07, 0.14)  # radians


@dataclass(frozen=True)
class Found:
    """A thing as it was read: its coverage (SIZE, SIZE), (SIZE, SIZE, 3) filled with its colours, how close (0 to 1)
    it is to its kind, and where it is."""

    thing: Thing
    cover: Tensor
    filled: Tensor
    likeness: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Reading:
    """One picture's. ``behind``: the background alone, (SIZE, SIZE, 3), in the colours it was drawn in."""

    scene: Scene
    found: tuple[Found, ...]
    behind: Tensor


def read(picture: Tensor) -> Reading:
    """A picture (SIZE, SIZE, 3) in [0, 1]."""
    if picture.shape != (SIZE, SIZE, 3):
        raise ValueError(f"picture has shape {tuple(picture.shape)}, expected ({SIZE}, {SIZE}, 3)")
    picture = picture.float().cpu()
    background, behind = _background(picture)
    mask = _without_lines(((picture - behind).norm(dim=-1) > DIFFERENT).float())
    halves, vertical = _halves(mask)
    found = tuple(each for half in halves if (each := _thing(picture, behind, mask * half, len(halves) > 1)))
    relation = "" if len(found) < 2 else RELATIONS[2 if vertical else 0]
    return Reading(Scene(tuple(each.thing for each in found), background, relation), found, behind)


def correct(reading: Reading, meant: Scene) -> dict[str, bool]:
    """Which attributes a picture shows as meant; of two things, in either order, all must be right."""
    things, scene = reading.scene.things, reading.scene
    wanted = meant.things
    if meant.relation in (RELATIONS[1], RELATIONS[3]):  # things are read from the left, or from the top
        wanted = wanted[::-1]
    pairs = list(zip(things, wanted, strict=False)) if len(things) == len(wanted) else []
    behind = (scene.background, meant.background)
    same = [surface.colours if surface.pattern != "stripes" else frozenset(surface.colours) for surface in behind]
    return {
        "thing": bool(pairs) and all(a.kind == b.kind for a, b in pairs),
        "colour": bool(pairs) and all(frozenset(a.surface.colours) == frozenset(b.surface.colours) for a, b in pairs),
        "background": behind[0].pattern == behind[1].pattern and same[0] == same[1],
        "position": bool(pairs) and all((a.row, a.column) == (b.row, b.column) for a, b in pairs),
        "size": bool(pairs) and all(a.size == b.size for a, b in pairs),
    }


# The background -------------------------------------------------------------------------------------------------------


def _background(picture: Tensor) -> tuple[Surface, Tensor]:
    """What fits the frame: one colour, two in stripes or from top to bottom, or one with dots further in."""
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    _, stripes, dots, gradient = weights("background")
    plain = picture[frame].median(0).values
    bands = [picture[frame & (stripes == band)].median(0).values for band in (0, 1)]
    upper, lower = picture[:FRAME].flatten(0, 1).median(0).values, picture[-FRAME:].flatten(0, 1).median(0).values
    slope = (lower - upper) / (1 - FRAME / SIZE)
    ends = [upper - slope * (FRAME / 2 / SIZE), lower + slope * (FRAME / 2 / SIZE)]
    models = {
        "plain": plain.expand(SIZE, SIZE, 3),
        "stripes": torch.lerp(bands[0], bands[1], stripes[..., None]),
        "gradient": torch.lerp(ends[0], ends[1], gradient[..., None]),
    }
    misfit = {name: (picture - model)[frame].norm(dim=-1).clamp(max=0.3).mean() for name, model in models.items()}
    best = min(misfit, key=lambda name: misfit[name].item())
    if misfit["plain"] - misfit[best] > 0.03:
        colours = bands if best == "stripes" else ends
        return Surface(_name(colours[0]), best, _name(colours[1])), models[best]
    dot = _dots(picture, plain)
    if dot is None:
        return Surface(_name(plain)), models["plain"]
    return Surface(_name(plain), "dots", _name(dot)), torch.lerp(plain, dot, dots[..., None])


def _dots(picture: Tensor, plain: Tensor) -> Tensor | None:
    """The dots' colour, if most of the places for dots show the same that is not ``plain``."""
    cells = picture.unfold(0, DOTS, DOTS).unfold(1, DOTS, DOTS)  # (4, 4, 3, DOTS, DOTS)
    line = torch.arange(DOTS) + 0.5 - DOTS / 2
    inner = torch.hypot(line[:, None], line) < DOT - 2
    colours = cells[..., inner].flatten(0, 1).median(-1).values
    away = colours[(colours - plain).norm(dim=-1) > DIFFERENT]
    if len(away) < len(colours) // 2:
        return None
    dot = away.median(0).values
    return dot if ((away - dot).norm(dim=-1) < DIFFERENT).sum() >= len(colours) // 2 else None


def _name(colour: Tensor) -> str:
    names = tuple(COLOURS)
    return names[int((torch.tensor([COLOURS[name] for name in names]) - colour).norm(dim=1).argmin())]


# The things -----------------------------------------------------------------------------------------------------------


def _halves(mask: Tensor) -> tuple[list[Tensor], bool]:
    """Masks of the two halves of a picture that has a thing in both and nothing between; else one of all."""
    middle, total = slice(SIZE // 2 - GAP, SIZE // 2 + GAP), mask.sum()
    for axis in (0, 1):
        profile = mask.sum(axis)
        parts = profile[: SIZE // 2].sum(), profile[SIZE // 2 :].sum()
        if min(parts) > LEAST and profile[middle].sum() < 0.02 * total:
            first = (torch.arange(SIZE) < SIZE // 2).float()
            first = first[None, :] if axis == 0 else first[:, None]
            return [first.expand(SIZE, SIZE), (1 - first).expand(SIZE, SIZE)], axis == 1
    return [torch.ones(SIZE, SIZE)], False


def _without_lines(mask: Tensor) -> Tensor:
    """Less what is at most two pixels wide: grain, and blurred edges of a pattern."""
    return _grown(1 - _grown(1 - mask, 1), 1)


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask[None], 2 * by + 1, 1, by)[0]


def _thing(picture: Tensor, behind: Tensor, mask: Tensor, small: bool) -> Found | None:
    if mask.sum() < LEAST:
        return None
    core = _grown(1 - mask, 1) == 0  # without the outline's mixed pixels
    core = core if core.sum() > LEAST / 4 else mask > 0
    surface, filled = _fill(picture, core)
    line = filled - behind
    cover = (((picture - behind) * line).sum(-1) / line.square().sum(-1).clamp(min=1e-3)).clamp(0, 1)
    cover = cover * _grown(mask, 3)
    kind, likeness, x, y, radius = _kind(cover)
    size = "small" if small else min(RADII, key=lambda name: abs(math.log(radius / RADII[name])))
    away = SIZE / 2 - RADII[size] - MARGIN
    column, row = (round(max(-1.0, min(1.0, (c - SIZE / 2) / away))) + 1 for c in (x, y))
    thing = Thing(THINGS[kind], surface, size, ROWS[row], COLUMNS[column])
    return Found(thing, cover, filled, likeness, x, y, radius)


def _fill(picture: Tensor, core: Tensor) -> tuple[Surface, Tensor]:
    """The colour, or the two of stripes, that ``core`` shows; and (SIZE, SIZE, 3) filled with it."""
    stripes = weights("fill")[1]
    bands = [picture[core & (stripes == band)] for band in (0, 1)]
    if min(map(len, bands)) > LEAST / 8:
        first, second = (band.median(0).values for band in bands)
        if (first - second).norm() > DIFFERENT and _name(first) != _name(second):
            return Surface(_name(first), "stripes", _name(second)), torch.lerp(first, second, stripes[..., None])
    colour = picture[core].median(0).values
    return Surface(_name(colour)), colour.expand(SIZE, SIZE, 3)


def _kind(cover: Tensor) -> tuple[int, float, float, float, float]:
    """Index of the thing that ``cover`` is most like, how like (intersection over union), and its x, y and radius."""
    masses, centroids, outlines = _templates()
    (x, y), mass = moments(cover)
    line = torch.linspace(-SPAN, SPAN, GRID) * math.sqrt(mass) / 2
    points = torch.stack(torch.broadcast_tensors(line + x, (line + y)[:, None]), dim=-1) * 2 / SIZE - 1
    shown = F.grid_sample(cover[None, None], points[None], align_corners=False).flatten()
    common = torch.minimum(outlines, shown).sum(1) / torch.maximum(outlines, shown).sum(1)
    best = int(common.argmax())
    kind = best // len(TILTS)
    radius = math.sqrt(mass / masses[best].item())
    dx, dy = (centroids[best] * radius).tolist()
    return kind, common[best].item(), x - dx, y - dy, radius


def moments(cover: Tensor) -> tuple[tuple[float, float], float]:
    """Centroid, x and y, and area of a coverage (SIZE, SIZE), in pixels."""
    grid, mass = torch.arange(SIZE) + 0.5, cover.sum()
    return ((cover.sum(0) @ grid / mass).item(), (cover.sum(1) @ grid / mass).item()), mass.item()


@functools.cache
def _templates() -> tuple[Tensor, Tensor, Tensor]:
    """Of all things in all ``TILTS``, radius 1: areas (N,), centroids (N, 2), normalised outlines (N, GRID²)."""
    kinds = torch.arange(len(THINGS)).repeat_interleave(len(TILTS))
    tilts = torch.tensor(TILTS).repeat(len(THINGS))
    line = (torch.arange(SIZE) + 0.5) * (2 * REACH / SIZE) - REACH
    flat = torch.stack(torch.broadcast_tensors(line, line[:, None]), dim=-1)
    sharp = SIZE / (2 * REACH)
    cover = (look_up(kinds, turned(line, line[:, None], tilts)) * sharp + 0.5).clamp(0, 1)
    masses = cover.sum((1, 2)) / sharp**2
    centroids = (cover[..., None] * flat).sum((1, 2)) / sharp**2 / masses[:, None]
    window = torch.linspace(-SPAN, SPAN, GRID)
    window = torch.stack(torch.broadcast_tensors(window, window[:, None]), dim=-1) / 2
    u, v = (window * masses.sqrt()[:, None, None, None] + centroids[:, None, None]).unbind(-1)
    outlines = (look_up(kinds, turned(u, v, tilts)) * 2 * RADII["small"] / 2 + 0.5).clamp(0, 1)
    return masses, centroids, outlines.flatten(1)
