"""Clips of the world: a thing that moves, grows, shrinks, spins or stands still, and captions that say so.

``"a small red cat at the top on white, moving left"``: the picture's caption (its place is the middle of the path),
then the motion. A motion is whole in every clip, however many frames it has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..motion import GROWTH, MOVES, TURN
from .captions import caption
from .painting import Poses, covers, poses, surfaces
from .scenes import Scene, random_scene

TRAVEL = 24.0  # pixels from the middle of a path to either end
MOTIONS = (*MOVES, "growing", "shrinking", "spinning", "standing still")
ROUND = ("circle", "ring")  # do not spin


@dataclass(frozen=True)
class MovingScene:
    scene: Scene
    motion: str


def random_moving_scene(rng: random.Random, backgrounds: float = 0.1, fills: float = 0.05) -> MovingScene:
    """Moves start and end within the picture."""
    scene, motion = random_scene(rng, pairs=0.0, backgrounds=backgrounds, fills=fills), rng.choice(MOTIONS)
    (thing,) = scene.things
    while motion == "spinning" and thing.kind in ROUND:
        motion = rng.choice(MOTIONS)
    x, y = MOVES.get(motion, (0, 0))
    row, column = ("middle" if y else thing.row), ("centre" if x else thing.column)
    return MovingScene(replace(scene, things=(replace(thing, row=row, column=column),)), motion)


def moving_caption(moving: MovingScene, rng: random.Random, partial: float = 0.0) -> str:
    """The picture's caption, then the motion."""
    return f"{caption(moving.scene, rng, partial)}, {moving.motion}"


def path(moving: MovingScene, frames: int, rng: random.Random | None = None) -> Poses:
    """Where the thing is in every frame; with ``rng``, a little off its words, alike in all frames."""
    start = poses(moving.scene.things, rng)
    time = torch.linspace(-1, 1, frames)
    x, y = MOVES.get(moving.motion, (0, 0))
    growth = {"growing": 1, "shrinking": -1}.get(moving.motion, 0)
    return Poses(
        start.x + time * x * TRAVEL,
        start.y + time * y * TRAVEL,
        start.radius * GROWTH ** (time * growth) / (GROWTH if growth else 1),
        start.angle + (time + 1) / 2 * TURN * (moving.motion == "spinning"),
    )


def paint_clips(clips: Sequence[MovingScene], frames: int, rng: random.Random | None = None) -> Tensor:
    """(B, frames, SIZE, SIZE, 3) in [0, 1]."""
    things = [clip.scene.things[0] for clip in clips]
    paths = [path(clip, frames, rng) for clip in clips]
    every = Poses(*(torch.cat([getattr(each, name) for each in paths]) for name in ("x", "y", "radius", "angle")))
    cover = covers([thing for thing in things for _ in range(frames)], every).unflatten(0, (len(clips), frames))
    behind = surfaces([clip.scene.background for clip in clips], "background")[:, None]
    filled = surfaces([thing.surface for thing in things], "fill")[:, None]
    return torch.lerp(behind, filled, cover[:, :, None]).movedim(2, -1)
