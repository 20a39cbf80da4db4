"""Clips with a caption that says how the shape moves: what the first demo video model learned from.

``"a small red star at the top on a white background, moving left"``: the picture's caption (its place is the middle of
the path), then the motion.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import COLUMNS, RADII, ROWS, SHAPES, Scene, caption, coverage, random_scene

FRAMES = 16
SPEED = 3.2  # pixels a frame, for all that move
GROWTH = 1.35  # largest radius over the middle one
TURN = math.pi / 2  # clockwise, over the clip
MOVES = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
MOTIONS = (*MOVES, "growing", "spinning", "standing still")


@dataclass(frozen=True)
class Motion:
    """How the frames of a clip differ from its middle: pixels (F, 2), factor of the radius (F,), radians (F,)."""

    shift: Tensor
    scale: Tensor
    angle: Tensor


def motion(name: str, frames: int = FRAMES) -> Motion:
    """``name``: one of ``MOTIONS``; ValueError otherwise."""
    if name not in MOTIONS:
        raise ValueError(f"motion is {name!r}, expected one of {', '.join(MOTIONS)}")
    time = torch.linspace(-1, 1, frames)
    direction = torch.tensor(MOVES.get(name, (0, 0)), dtype=torch.float32)
    return Motion(
        shift=time[:, None] * direction * (SPEED * (FRAMES - 1) / 2),
        scale=GROWTH ** (time * (name == "growing")),
        angle=(time + 1) / 2 * TURN * (name == "spinning"),
    )


@dataclass(frozen=True)
class MovingScene:
    scene: Scene
    motion: str


def random_moving_scene(rng: random.Random, spinning: int = 1) -> MovingScene:
    """Moves start and end within the picture; a circle does not spin. ``spinning``: how many times as often as any
    other motion."""
    name = rng.choice((*MOTIONS, *["spinning"] * (spinning - 1)))
    scene = random_scene(rng)
    x, y = MOVES.get(name, (0, 0))
    shape = rng.choice([each for each in SHAPES if each != "circle"]) if name == "spinning" else scene.shape
    row, column = ("middle" if y else scene.row), ("centre" if x else scene.column)
    return MovingScene(Scene(shape, scene.colour, scene.background, scene.size, row, column), name)


def moving_caption(moving: MovingScene, rng: random.Random, partial: float = 0.0) -> str:
    """The picture's caption, then the motion."""
    return f"{caption(moving.scene, rng, partial)}, {moving.motion}"


def moving_coverage(moving: MovingScene, jitter: tuple[float, float] = (0.0, 0.0), frames: int = FRAMES) -> Tensor:
    """Coverage (F, 128, 128) of the clip; ``jitter``: pixels off the scene's place."""
    scene, moves = moving.scene, motion(moving.motion, frames)
    x = COLUMNS[scene.column] + jitter[0] + moves.shift[:, 0]
    y = ROWS[scene.row] + jitter[1] + moves.shift[:, 1]
    radius = RADII[scene.size]
    if len(set(moves.scale.tolist())) == len(set(moves.angle.tolist())) == 1:
        return coverage(scene.shape, radius, x, y)
    return torch.cat(
        [
            coverage(scene.shape, radius * scale, x[None], y[None], angle)
            for scale, angle, x, y in zip(moves.scale.tolist(), moves.angle.tolist(), x, y, strict=True)
        ]
    )
