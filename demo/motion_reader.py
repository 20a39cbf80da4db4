"""Reads how the shape of a clip moves: measured from the frames, as :mod:`.reader` reads pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .motion import GROWTH, MOTIONS, MOVES, SPEED, TURN
from .reader import CELL, Reading, cover_of, read
from .shapes import SHAPES, SIZE, coverage

LEAST = 1 / 3  # of what a caption's motion changes: less is standing still
PERIODS = {"square": math.pi / 2, "cross": math.pi / 2, "star": 2 * math.pi / 5, "triangle": 2 * math.pi / 3}
ANGLES = 16  # orientations tried, over a shape's period
EVERY = 3  # frames: a turn is followed in steps far below half a period
WINDOW = 96  # pixels around the shape that orientations are compared in


@dataclass(frozen=True)
class MotionReading:
    """``motion``: one of ``MOTIONS``. ``velocity``: (2,) pixels a frame. ``growth``: factor of the radius over the
    clip. ``turn``: radians, clockwise, over the clip; 0 where the shape moves or grows. ``reading``: of every frame."""

    motion: str
    velocity: Tensor
    growth: float
    turn: float
    reading: Reading


def read_motion(frames: Tensor) -> MotionReading:
    """The motion of a clip (T, 128, 128, 3) in [0, 1], T ≥ 2: what changes most, by straight lines through all frames,
    in units of how much the captions' motions change it."""
    cover = cover_of(frames)
    mass = cover.sum((1, 2)).clamp(min=1.0)
    grid = torch.arange(SIZE) + 0.5
    centre = torch.stack([cover.sum(1) @ grid, cover.sum(2) @ grid], dim=1) / mass[:, None]
    travelled, growth = _over_the_clip(centre), math.exp(_over_the_clip(mass.log()[:, None]).item() / 2)
    span = SPEED * (len(frames) - 1)
    amounts = {name: float(travelled @ torch.tensor(way, dtype=torch.float32)) / span for name, way in MOVES.items()}
    amounts["growing"] = math.log(growth) / (2 * math.log(GROWTH))
    reading, turn = read(frames), 0.0
    if max(amounts.values()) <= LEAST:
        turn = _turn(cover)
        amounts["spinning"] = turn / TURN
    best = max(amounts, key=lambda name: amounts[name])
    motion = best if amounts[best] > LEAST else MOTIONS[-1]
    return MotionReading(motion, travelled / (len(frames) - 1), growth, turn, reading)


def _over_the_clip(x: Tensor) -> Tensor:
    """How much ``x`` (T, n) changes from the first frame to the last, by the straight line of least squares."""
    time = torch.linspace(-0.5, 0.5, len(x))
    return time @ (x - x.mean(0)) / time.square().sum()


def _turn(cover: Tensor) -> float:
    """Radians clockwise from the first frame to the last, of the shape that fits the frames best; 0 for a circle.

    Frames are matched with every shape, of their own area, in orientations over its period.
    """
    middle, frames = torch.tensor([WINDOW / 2]), _centred(cover[::EVERY])
    fits: dict[str, tuple[float, Tensor]] = {}
    for shape in SHAPES:
        period, count = PERIODS.get(shape, 0.0), ANGLES if shape in PERIODS else 1
        angles = [period * k / ANGLES for k in range(count)]
        templates = _centred(torch.cat([coverage(shape, 20.0, middle, middle, angle, WINDOW) for angle in angles]))
        best = (frames[:, None] - templates).square().sum((2, 3)).min(dim=1)
        fits[shape] = best.values.sum().item(), best.indices * (period / ANGLES)
    shape = min(fits, key=lambda name: fits[name][0])
    if shape not in PERIODS:
        return 0.0
    steps, period = fits[shape][1].double().diff(), PERIODS[shape]
    return float((steps - period * (steps / period).round()).sum())


def _centred(cover: Tensor) -> Tensor:
    """Coverages (B, H, W), moved and scaled so that centroid and area are the same: (B, n, n), n = WINDOW / CELL."""
    height, width = cover.shape[1:]
    mass = cover.sum((1, 2)).clamp(min=1.0)
    x, y = cover.sum(1) @ (torch.arange(width) + 0.5) / mass, cover.sum(2) @ (torch.arange(height) + 0.5) / mass
    reach = mass.sqrt()  # half a window is as far as any shape of that area goes
    size = WINDOW // CELL
    line = torch.linspace(-1, 1, size)
    columns = (x[:, None, None] + reach[:, None, None] * line) * 2 / width - 1
    rows = (y[:, None, None] + reach[:, None, None] * line[:, None]) * 2 / height - 1
    grid = torch.stack(torch.broadcast_tensors(columns, rows), dim=-1)
    return F.grid_sample(cover[:, None], grid, align_corners=False)[:, 0]
