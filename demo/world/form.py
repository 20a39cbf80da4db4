"""How well a drawn thing keeps its form: how far its outline is from the ideal one, and specks beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .painting import weights
from .reader import Found, Reading
from .scenes import PATTERNS
from .things import SIZE, THINGS, coverage, distance, look_up, turned

NEAR = 6.0  # pixels: what is farther from the ideal outline is a speck, not an outline
BLUR = 3.0  # pixels at edges that may be of any colour
WRONG = 0.25  # in RGB


@dataclass(frozen=True)
class Form:
    """``off``: pixels from the ideal outline, (N,), at points all along the drawn one; ``overlap``: intersection over
    union. Both at the place, size and angle that fit best, ``pose``: x, y, radius, angle."""

    off: Tensor
    overlap: float
    pose: Tensor

    @property
    def mean(self) -> float:
        return self.off.mean().item()

    @property
    def worst(self) -> float:
        """The 95th percentile along the outline."""
        return self.off.quantile(0.95).item()


def form(found: Found, kind: str | None = None, angle: float = 0.0) -> Form:
    """``kind``: what it should be; what it was read as by default. ``angle``: about how far it is turned."""
    index = torch.tensor([THINGS.index(kind or found.thing.kind)])
    points = outline(found.cover)
    pose = torch.tensor([found.x, found.y, found.radius, angle])
    steps = torch.tensor([0.1, 0.1, 0.1, 0.005])
    for _ in range(12):  # Gauss-Newton; far points pull no more than near ones
        poses = pose + torch.cat([torch.zeros(1, 4), steps.diag()])
        values = _distances(index.expand(5), points, poses)
        off, slopes = values[0], (values[1:] - values[0]) / steps[:, None]
        pull = (1.0 / off.abs().clamp(min=1.0)) * (off.abs() < 2 * NEAR)
        normal = (slopes * pull) @ slopes.T + 1e-4 * torch.eye(4)
        pose = pose - torch.linalg.solve(normal, (slopes * pull) @ off)
    off = _distances(index, points, pose[None])[0].abs()
    ideal = coverage(index, *pose[:, None])[0]
    overlap = (torch.minimum(ideal, found.cover).sum() / torch.maximum(ideal, found.cover).sum()).item()
    near = off[off < NEAR]
    return Form(near if len(near) else off, overlap, pose)


def outline(cover: Tensor) -> Tensor:
    """Points (N, 2), in pixels, where a coverage (H, W) passes one half between neighbouring pixels."""
    across, down = (torch.arange(side) + 0.5 for side in (cover.shape[1], cover.shape[0]))
    found = []
    for axis, (a, b) in enumerate(((cover[:, :-1], cover[:, 1:]), (cover[:-1], cover[1:]))):
        rows, columns = torch.nonzero((a > 0.5) != (b > 0.5), as_tuple=True)
        first, second = a[rows, columns], b[rows, columns]
        share = (0.5 - first) / (second - first)
        x, y = across[columns], down[rows]
        found.append(torch.stack([x + share, y] if axis == 0 else [x, y + share], dim=1))
    return torch.cat(found)


def _distances(kinds: Tensor, points: Tensor, poses: Tensor) -> Tensor:
    """Signed, in pixels (P, N), of ``points`` (N, 2) from the outline in each of ``poses`` (P, 4)."""
    x, y, radius, angle = poses.T[:, :, None]
    u, v = (points[:, 0] - x) / radius, (points[:, 1] - y) / radius
    return look_up(kinds, turned(u[:, None], v[:, None], angle[:, 0]))[:, 0] * radius


def largest_speck(picture: Tensor, reading: Reading, forms: list[Form]) -> int:
    """Pixels of the largest component whose colour is wrong, away from all edges."""
    from scipy import ndimage

    ideal, edge = reading.behind.clone(), _pattern_edges(reading.scene.background.pattern, "background")
    for found, fitted in zip(reading.found, forms, strict=True):
        kind = torch.tensor([THINGS.index(found.thing.kind)])
        x, y, radius, angle = fitted.pose[:, None]
        away = distance(kind, x, y, radius, angle)[0]
        edge |= (away.abs() < BLUR) | ((away > 0) & _pattern_edges(found.thing.surface.pattern, "fill"))
        ideal = torch.where((away > 0)[..., None], found.filled, ideal)
    wrong = ((picture.float().cpu() - ideal).norm(dim=-1) > WRONG) & ~edge
    labels, count = ndimage.label(wrong.numpy(), structure=torch.ones(3, 3).numpy())
    return int(torch.from_numpy(labels).flatten().bincount()[1:].max()) if count else 0


def _pattern_edges(pattern: str, use: str) -> Tensor:
    """(SIZE, SIZE) bool: within two pixels of where a pattern changes its colour at once."""
    if pattern not in ("stripes", "dots"):
        return torch.zeros(SIZE, SIZE, dtype=torch.bool)
    share = weights(use)[PATTERNS.index(pattern)][None]
    return (F.max_pool2d(share, 5, 1, 2) + F.max_pool2d(-share, 5, 1, 2))[0] > 0
