"""Pictures drawn by code: one coloured shape on a background of another colour, and a caption that says so.

Everything the first demo models have ever seen comes from here. A picture is RGB in [0, 1] and a linear blend,
``background + coverage · (colour − background)``, so what is linear in pictures (the hand-set encoder of the
demo VAE) can be computed from the coverage alone; :mod:`.training.first.data` lives on that.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 128  # pixels, height and width
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (0.88, 0.13, 0.15),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.90, 0.20),
    "green": (0.13, 0.62, 0.24),
    "blue": (0.12, 0.30, 0.85),
    "purple": (0.55, 0.20, 0.70),
    "white": (0.97, 0.97, 0.97),
    "black": (0.06, 0.06, 0.06),
}
RADII = {"small": 19.0, "large": 29.0}  # pixels
ROWS = {"top": 34.0, "middle": 64.0, "bottom": 94.0}  # centre, pixels from the top
COLUMNS = {"left": 34.0, "centre": 64.0, "right": 94.0}  # centre, pixels from the left
POSITIONS = tuple(itertools.product(ROWS, COLUMNS))


@dataclass(frozen=True)
class Scene:
    """What a caption says of a picture."""

    shape: str
    colour: str
    background: str
    size: str
    row: str
    column: str

    @property
    def position(self) -> str:
        return position(self.row, self.column)


def position(row: str, column: str) -> str:
    """``top left``, ``top``, ``centre``: as captions say it."""
    if (row, column) == ("middle", "centre"):
        return "centre"
    return " ".join(word for word in (row, column) if word not in ("middle", "centre"))


def random_scene(rng: random.Random) -> Scene:
    colour, background = rng.sample(tuple(COLOURS), 2)
    row, column = rng.choice(POSITIONS)
    return Scene(rng.choice(SHAPES), colour, background, rng.choice(tuple(RADII)), row, column)


_TEMPLATES = (
    "a {size} {colour} {shape} {where} on a {background} background",
    "{size} {colour} {shape} {where}, {background} background",
    "a {colour} {shape}, {size}, {where}, on {background}",
    "a {background} background with a {size} {colour} {shape} {where}",
    "on a {background} background, {where}, a {size} {colour} {shape}",
    "a picture of a {size} {colour} {shape} {where} on {background}",
)
_PARTIAL_TEMPLATES = (
    "a {colour} {shape} on a {background} background",
    "{colour} {shape}, {background} background",
    "a {size} {colour} {shape} on a {background} background",
    "a {colour} {shape} {where} on a {background} background",
    "a {shape} on a {background} background",
    "a {size} {colour} {shape} {where}",
    "a {colour} {shape}",
    "a {size} {shape} {where}",
)
_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}


def template(rng: random.Random, partial: float = 0.0) -> str:
    """A phrasing with its attributes in braces; a share ``partial`` of them leaves some out."""
    return rng.choice(_PARTIAL_TEMPLATES if rng.random() < partial else _TEMPLATES)


def fill(template: str, scene: Scene, rng: random.Random) -> str:
    """``template`` said of ``scene``."""
    if scene.position == "centre":
        where = rng.choice(("in the centre", "in the middle", "at the center"))
    else:
        where = rng.choice(("at the {}", "in the {}")).format(scene.position)
    text = template.format(
        size=rng.choice(_SIZE_WORDS[scene.size]),
        colour=scene.colour,
        shape=scene.shape,
        background=scene.background,
        where=where,
    )
    return re.sub(r"\ba (?=orange)", "an ", text)


def caption(scene: Scene, rng: random.Random, partial: float = 0.0) -> str:
    """One of several phrasings of ``scene``; a share ``partial`` of them leaves attributes out."""
    return fill(template(rng, partial), scene, rng)


def outline(shape: str) -> list[tuple[float, float]] | None:
    """Corners (x to the right, y down) of a polygon for radius 1, centred; None for the circle."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.1, 0.9), (-1.1, 0.9)]
    if shape == "star":
        spokes = [(1.15 if k % 2 == 0 else 0.47, math.pi * (k / 5 - 0.5)) for k in range(10)]
        return [(r * math.cos(a), r * math.sin(a)) for r, a in spokes]
    if shape == "cross":
        a, b = 0.34, 1.05
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    if shape == "circle":
        return None
    raise ValueError(f"shape is {shape!r}, expected one of {', '.join(SHAPES)}")


def coverage(shape: str, radius: float, x: Tensor, y: Tensor, angle: float = 0.0, size: int = SIZE) -> Tensor:
    """Share of every pixel that the shape covers, from its signed distance (one pixel of antialiasing).

    ``x``, ``y``: centres in pixels, shape (B,). ``angle``: radians, clockwise. Returns (B, size, size) float32.
    """
    grid = torch.arange(size) + 0.5
    px = (grid - x.reshape(-1, 1, 1)).expand(-1, size, size)
    py = (grid.reshape(-1, 1) - y.reshape(-1, 1, 1)).expand(-1, size, size)
    corners = outline(shape)
    if corners is None:
        return (radius - torch.hypot(px, py) + 0.5).clamp(0, 1)
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(radius * (cos * u - sin * v), radius * (sin * u + cos * v)) for u, v in corners]
    squared = torch.full_like(px, math.inf)
    inside = torch.zeros(px.shape, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = px - ax, py - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        squared = torch.minimum(squared, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        if ey != 0:  # even-odd rule: count the edges a ray to the right crosses
            inside ^= ((ay > py) != (by > py)) & (px < ax + ex * (py - ay) / ey)
    distance = squared.sqrt()
    return (torch.where(inside, distance, -distance) + 0.5).clamp(0, 1)


def paint(cover: Tensor, colour: str, background: str) -> Tensor:
    """Coverage (B, H, W) → pictures (B, H, W, 3) in [0, 1], ComfyUI's IMAGE layout."""
    front, back = (torch.tensor(COLOURS[name]) for name in (colour, background))
    return back + cover.unsqueeze(-1) * (front - back)


def draw(scene: Scene, dx: float = 0.0, dy: float = 0.0, scale: float = 1.0) -> Tensor:
    """One picture (SIZE, SIZE, 3) of ``scene``, moved by (dx, dy) pixels and scaled."""
    x, y = torch.tensor([COLUMNS[scene.column] + dx]), torch.tensor([ROWS[scene.row] + dy])
    return paint(coverage(scene.shape, RADII[scene.size] * scale, x, y), scene.colour, scene.background)[0]
