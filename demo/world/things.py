"""Draws things: their signed distances, looked up in a table, become coverage at any place, size and angle."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .outlines import OUTLINES

THINGS = tuple(OUTLINES)
SIZE = 128  # pixels, height and width of a picture
REACH = 1.25  # the tables' square goes from −REACH to REACH, in units of a thing's radius
CELLS = 256  # of a table, along each side


@functools.cache
def distances(thing: str) -> Tensor:
    """Signed distance (CELLS, CELLS) from the outline in units of the radius, positive inside."""
    line = (torch.arange(CELLS) + 0.5) * (2 * REACH / CELLS) - REACH
    x, y = line.expand(CELLS, -1).flatten(), line[:, None].expand(-1, CELLS).flatten()
    field = torch.full_like(x, -math.inf)
    for part in OUTLINES[thing]:
        distance = _polygon(x, y, torch.tensor(part.corners))
        field = torch.minimum(field, -distance) if part.cut else torch.maximum(field, distance)
    return field.reshape(CELLS, CELLS)


def _polygon(x: Tensor, y: Tensor, corners: Tensor) -> Tensor:
    """Signed distance of points (N,) from a polygon (C, 2), positive inside."""
    squared, inside = torch.full_like(x, math.inf), torch.zeros(len(x), dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners.tolist(), corners.roll(-1, 0).tolist(), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / max(ex * ex + ey * ey, 1e-12)).clamp_(0, 1)
        squared = torch.minimum(squared, (wx - along * ex).square_() + (wy - along * ey).square_())
        if ey != 0:  # even-odd rule: count the edges a ray to the right crosses
            inside ^= ((ay > y) != (by > y)) & (wx < ex / ey * wy)
    return torch.where(inside, squared, -squared).abs().sqrt() * (inside * 2.0 - 1)


def distance(kinds: Tensor, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, size: int = SIZE) -> Tensor:
    """Signed distance in pixels (B, size, size) of one thing a picture, positive inside.

    ``kinds``: (B,) indices of ``THINGS``. ``x``, ``y``, ``radius`` in pixels, ``angle`` in radians, clockwise; (B,).
    """
    grid = torch.arange(size, device=x.device) + 0.5
    u = (grid - x[:, None])[:, None, :] / radius[:, None, None]
    v = (grid - y[:, None])[:, :, None] / radius[:, None, None]
    return look_up(kinds, turned(u, v, angle)) * radius[:, None, None]


def turned(u: Tensor, v: Tensor, angle: Tensor) -> Tensor:
    """Points (B, H, W, 2) in the frames of things that are turned clockwise by ``angle`` (B,); ``u``, ``v``: x and y,
    broadcast to (B, H, W)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return torch.stack([cos * u + sin * v, cos * v - sin * u], dim=-1)


def look_up(kinds: Tensor, points: Tensor) -> Tensor:
    """Signed distances (B, H, W) at ``points`` (B, H, W, 2), all in units of the radius."""
    chosen = torch.stack([distances(THINGS[kind]) for kind in kinds.tolist()]).to(points.device)[:, None]
    return F.grid_sample(chosen, points / REACH, padding_mode="border", align_corners=False)[:, 0]


def coverage(kinds: Tensor, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, size: int = SIZE) -> Tensor:
    """Share of every pixel (B, size, size) that the thing covers: one pixel of antialiasing."""
    return (distance(kinds, x, y, radius, angle, size) + 0.5).clamp_(0, 1)
