"""Paints scenes: every picture the demo's models learn from comes from here."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import COLOURS, PATTERNS, RADII, Scene, Surface, Thing
from .things import SIZE, THINGS, coverage

SHIFT, GROWTH, TURN = 3.0, 0.05, 0.09  # how far a thing may be off its place (pixels), size and upright (radians)
BANDS = {"background": 16, "fill": 8}  # pixels: height of a stripe; on the edges of the VAE's blocks
DOTS, DOT = 32, 7.0  # pixels between dots, and their radius


@dataclass(frozen=True)
class Poses:
    """Exactly where B things are: pixels, and radians clockwise, (B,) each."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor


def poses(things: Sequence[Thing], rng: random.Random | None = None) -> Poses:
    """Where ``things`` are by their words, or, with ``rng``, a little off."""
    rows = []
    for thing in things:
        x, y = thing.place
        radius, angle = RADII[thing.size], 0.0
        if rng:
            x, y = x + rng.uniform(-SHIFT, SHIFT), y + rng.uniform(-SHIFT, SHIFT)
            radius, angle = radius * (1 + rng.uniform(-GROWTH, GROWTH)), rng.uniform(-TURN, TURN)
        rows.append((x, y, radius, angle))
    return Poses(*torch.tensor(rows).unbind(1))


def covers(things: Sequence[Thing], where: Poses) -> Tensor:
    """(B, SIZE, SIZE): how much of every pixel each thing covers."""
    kinds = torch.tensor([THINGS.index(thing.kind) for thing in things])
    return coverage(kinds, where.x, where.y, where.radius, where.angle)


@functools.cache
def weights(use: str) -> Tensor:
    """For each of ``PATTERNS``, how much of the second colour is where: (4, SIZE, SIZE)."""
    line = torch.arange(SIZE) + 0.5
    stripes = (line / BANDS[use]).floor()[:, None].expand(SIZE, SIZE) % 2
    off = (line % DOTS) - DOTS / 2
    dots = (DOT + 0.5 - torch.hypot(off[:, None], off)).clamp(0, 1)
    gradient = (line / SIZE)[:, None].expand(SIZE, SIZE)
    return torch.stack([torch.zeros(SIZE, SIZE), stripes, dots, gradient])


def surfaces(each: Sequence[Surface], use: str) -> Tensor:
    """(B, 3, SIZE, SIZE), filled throughout."""
    first, second = (
        torch.tensor([COLOURS[name] for name in names])[:, :, None, None]
        for names in ([s.colour for s in each], [s.second or s.colour for s in each])
    )
    chosen = torch.tensor([PATTERNS.index(s.pattern) for s in each])
    return torch.lerp(first, second, weights(use)[chosen][:, None])


def paint(scenes: Sequence[Scene], rng: random.Random | None = None) -> Tensor:
    """Pictures (B, SIZE, SIZE, 3) in [0, 1], ComfyUI's IMAGE layout; with ``rng``, as varied as in training."""
    pictures = surfaces([scene.background for scene in scenes], "background")
    for nth in range(max(len(scene.things) for scene in scenes)):
        chosen = torch.tensor([k for k, scene in enumerate(scenes) if len(scene.things) > nth])
        things = [scenes[k].things[nth] for k in chosen.tolist()]
        cover = covers(things, poses(things, rng))[:, None]
        pictures[chosen] = torch.lerp(pictures[chosen], surfaces([t.surface for t in things], "fill"), cover)
    return pictures.movedim(1, -1)
