"""Reads how the shape of a clip moves: measured from the frames, as :mod:`.reader` reads pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .motion import GROWTH, MOTIONS, MOVES, SPEED, TURN
from .reader import CELL, Reading, cover_of, read
from .shapes import SIZE, coverage

ANGLES = 24  # orientations tried, over TURN


@dataclass(frozen=True)
class MotionReading:
    """``motion``: one of ``MOTIONS``; ``velocity``: (2,) pixels a frame; ``growth``: factor of the radius over the
    clip; ``turn``: radians, clockwise, over the clip; ``reading``: what the frames show one by one."""

    motion: str
    velocity: Tensor
    growth: float
    turn: float
    reading: Reading


def read_motion(frames: Tensor) -> MotionReading:
    """The motion of a clip (T, 128, 128, 3) in [0, 1], T ≥ 2: the largest of what changes, in units of how much the
    motions of the captions change it; standing still where nothing changes by a third of that."""
    reading = read(frames)
    time = torch.linspace(-0.5, 0.5, len(frames))
    slope = lambda x: (time @ (x - x.mean(0))) / time.square().sum()  # noqa: E731  (over the whole clip)
    cover = cover_of(frames)
    mass = cover.sum((1, 2)).clamp(min=1.0)
    grid = torch.arange(SIZE) + 0.5
    centre = torch.stack([(cover.sum(1) @ grid) / mass, (cover.sum(2) @ grid) / mass], dim=1)
    travelled = slope(centre)
    growth = slope(mass.log()).item() / 2
    turn = _turn(cover, reading, centre)
    span = SPEED * (len(frames) - 1)
    amounts = {name: float(travelled @ torch.tensor(way, dtype=torch.float32)) / span for name, way in MOVES.items()}
    amounts |= {"growing": growth / (2 * math.log(GROWTH)), "spinning": turn / TURN}
    best = max(amounts, key=lambda name: amounts[name])
    motion = best if amounts[best] > 1 / 3 else MOTIONS[-1]
    return MotionReading(motion, travelled / (len(frames) - 1), math.exp(growth), turn, reading)


def _turn(cover: Tensor, reading: Reading, centre: Tensor) -> float:
    """Radians clockwise from the first frame to the last, of the shape read in most frames; 0 for a circle.

    Every frame is matched with the shape in orientations over its symmetry's period; steps between frames are the
    shortest.
    """
    shapes = [scene.shape for scene in reading.scenes]
    shape = max(set(shapes), key=shapes.count)
    if shape == "circle":
        return 0.0
    period = {"square": math.pi / 2, "cross": math.pi / 2, "star": 2 * math.pi / 5, "triangle": 2 * math.pi / 3}[shape]
    angles = [period * k / ANGLES for k in range(ANGLES)]
    small = F.avg_pool2d(cover, CELL)
    # the radius from the area: templates of a wrong size match no better in another orientation
    unit_area = float(coverage(shape, 20.0, torch.tensor([64.0]), torch.tensor([64.0])).sum()) / 20.0**2
    radii = (cover.sum((1, 2)) / unit_area).sqrt().clamp(5.0, 60.0)
    errors = torch.empty(len(cover), ANGLES)
    for index, angle in enumerate(angles):
        for frame, (radius, (x, y)) in enumerate(zip(radii.tolist(), centre, strict=True)):
            template = coverage(shape, radius, x[None], y[None], angle)
            errors[frame, index] = (F.avg_pool2d(template, CELL) - small[frame]).square().sum()
    phase = errors.argmin(1).double() * period / ANGLES
    steps = phase.diff()
    return float((steps - period * (steps / period).round()).sum())
