"""Reads clips of the world: which thing, and how it moves, grows or turns from the first frame to the last."""

from __future__ import annotations

import collections
import heapq
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .form import Form, form
from .motion import GROWTH, MOTIONS, MOVES, ROUND, TRAVEL, TURN
from .reader import Found, moments, read
from .scenes import Surface
from .things import REACH, SIZE, THINGS, look_up, turned

LEAST = 1 / 3  # of what a caption's motion changes: less is standing still
GRID = 48  # cells of the window in which orientations are compared
CANDIDATES = 4  # things that are followed through the clip, to see which it is
STEP, REACHED = math.radians(5), math.radians(35)  # between orientations tried, and from one frame's to the next


@dataclass(frozen=True)
class ClipReading:
    """``found``: the thing in every frame that shows one. ``travelled``: pixels (x, y), ``growth``: factor of the
    radius, ``turn``: radians clockwise, each from the first frame to the last."""

    kind: str
    surface: Surface
    background: Surface
    motion: str
    travelled: tuple[float, float]
    growth: float
    turn: float
    found: tuple[Found, ...]
    forms: tuple[Form, ...]


def read_clip(frames: Tensor) -> ClipReading | None:
    """Frames (T, SIZE, SIZE, 3) in [0, 1], T ≥ 2; None where no more than half of them show one thing."""
    readings = [read(frame) for frame in frames]
    background = _most([reading.scene.background for reading in readings])
    shown = [index for index, reading in enumerate(readings) if len(reading.found) == 1]
    if len(shown) <= len(frames) / 2:
        return None
    found = [readings[index].found[0] for index in shown]
    likeness: dict[str, float] = collections.defaultdict(float)
    for each in found:
        likeness[each.thing.kind] += each.likeness
    covers = [each.cover for each in found]
    tried = {
        kind: _angles(covers, kind) for kind in heapq.nlargest(CANDIDATES, likeness, key=lambda name: likeness[name])
    }
    kind = max(tried, key=lambda name: tried[name][1])
    angles = tried[kind][0]
    time = torch.tensor(shown) / (len(frames) - 1)
    centre, mass = zip(*(moments(each.cover) for each in found), strict=True)
    travelled = [_over_the_clip(time, torch.tensor(axis)) for axis in zip(*centre, strict=True)]
    growth = math.exp(_over_the_clip(time, torch.tensor(mass).log()) / 2)
    turn = _over_the_clip(time, angles) if kind not in ROUND else 0.0
    amounts = {name: (x * travelled[0] + y * travelled[1]) / (2 * TRAVEL) for name, (x, y) in MOVES.items()}
    amounts["growing"] = math.log(growth) / (2 * math.log(GROWTH))
    amounts |= {"shrinking": -amounts["growing"], "spinning": turn / TURN}
    best = max(amounts, key=lambda name: amounts[name])
    motion = best if amounts[best] > LEAST else MOTIONS[-1]
    forms = tuple(form(each, kind, angle) for each, angle in zip(found, angles.tolist(), strict=True))
    surface = _most([each.thing.surface for each in found])
    x, y = travelled
    return ClipReading(kind, surface, background, motion, (x, y), growth, turn, tuple(found), forms)


def _most(surfaces: list[Surface]) -> Surface:
    return collections.Counter(surfaces).most_common(1)[0][0]


def _over_the_clip(time: Tensor, values: Tensor) -> float:
    """How much ``values`` change over the clip, by the straight line of least squares."""
    time = time - time.mean()
    return (time @ (values - values.mean()) / time.square().sum()).item()


def _angles(covers: list[Tensor], kind: str) -> tuple[Tensor, float]:
    """Radians clockwise of the thing in every frame, each near the one before it, and how alike it then is."""
    angles, alike, last = [], 0.0, 0.0
    for cover in covers:
        tried = last + torch.arange(-round(REACHED / STEP), round(REACHED / STEP) + 1) * STEP
        best = _alike(cover, kind, tried).max(0)
        last = tried[best.indices].item()
        angles.append(last)
        alike += best.values.item() / len(covers)
    return torch.tensor(angles), alike


def _alike(cover: Tensor, kind: str, angles: Tensor) -> Tensor:
    """Intersection over union (A,) of ``cover`` and ``kind`` at ``angles``, of the same centroid and area."""
    (x, y), mass = moments(cover)
    line = torch.linspace(-1, 1, GRID) * 1.2
    window = torch.stack(torch.broadcast_tensors(line, line[:, None]), dim=-1)
    scale = math.sqrt(mass)
    shown = F.grid_sample(
        cover[None, None], (window * scale + torch.tensor([x, y]))[None] * 2 / SIZE - 1, align_corners=False
    )[0]
    index = torch.tensor([THINGS.index(kind)])
    flat = torch.linspace(-REACH, REACH, SIZE)
    flat = torch.stack(torch.broadcast_tensors(flat, flat[:, None]), dim=-1)
    inside = (look_up(index, flat[None])[0] > 0).float()
    area, centroid = inside.mean() * (2 * REACH) ** 2, (inside[..., None] * flat).sum((0, 1)) / inside.sum()
    side = line * area.sqrt()
    points = turned(side, side[:, None], angles) + centroid
    ideal = (look_up(index.expand(len(angles)), points) * scale / area.sqrt() + 0.5).clamp(0, 1)
    return torch.minimum(ideal, shown).sum((1, 2)) / torch.maximum(ideal, shown).sum((1, 2))
