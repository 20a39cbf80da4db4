"""Reads pictures of the first demo model's world back into scenes: measured, not learned.

The background is the border's median, the colour the median of what is farthest from it. A picture then is a coverage,
its projection onto the line between the two; shape, size and position are those of the rendered shape closest to that
coverage, over all shapes, radii and small offsets around its centroid.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import COLOURS, COLUMNS, RADII, ROWS, SHAPES, SIZE, Scene, coverage

ATTRIBUTES = ("colour", "background", "position", "size", "shape")

CELL = 2  # pixels: shapes are matched at half the resolution, where noise is half as strong
WINDOW = 48  # cells: height and width of a template, for the largest shape
REACH = 2  # cells: how far off the centroid a template is tried, for shapes cut by the frame
TEMPLATE_RADII = [13.0 * 1.07**k for k in range(17)]  # pixels, up to 38
MIN_CONTRAST = 0.2  # distance in RGB; the palette's nearest colours are 0.38 apart
FLAT = 4  # pixels: flat areas are what is farther than this from any edge


@dataclass(frozen=True)
class Reading:
    """What B pictures, or the frames of a clip, show."""

    scenes: list[Scene]
    confidence: Tensor
    """(B,) in [0, 1]: intersection over union of the coverage and the shape read; 0 where there is no contrast."""
    centre: Tensor
    """(B, 2): x and y of the shape's origin in pixels (its centroid, but for the triangle); a clip's track."""
    radius: Tensor
    """(B,) in pixels, to 4 %."""
    grain: Tensor
    """(B,): standard deviation in flat areas (farther than 4 px from any edge) about their mean colour, inside and
    outside the shape, of the worst channel, in 1/255."""


def read(pictures: Tensor) -> Reading:
    """Pictures or frames (B, 128, 128, 3) in [0, 1] → what each of them shows."""
    if pictures.ndim != 4 or pictures.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, {SIZE}, {SIZE}, 3)")
    pictures = pictures.float().cpu()
    background, colour = _two_colours(pictures)
    cover, contrast = _cover(pictures, background, colour)
    template, centre, overlap = _match(F.avg_pool2d(cover, CELL))
    radius = torch.tensor(TEMPLATE_RADII)[template % len(TEMPLATE_RADII)]
    scenes = [
        Scene(*attributes)
        for attributes in zip(
            (SHAPES[index] for index in (template // len(TEMPLATE_RADII)).tolist()),
            _nearest(COLOURS, colour),
            _nearest(COLOURS, background),
            _nearest({size: (value,) for size, value in RADII.items()}, radius[:, None]),
            _nearest({row: (y,) for row, y in ROWS.items()}, centre[:, 1:]),
            _nearest({column: (x,) for column, x in COLUMNS.items()}, centre[:, :1]),
            strict=True,
        )
    ]
    confidence = torch.where(contrast < MIN_CONTRAST, 0.0, overlap)
    return Reading(scenes, confidence, centre, radius, _grain(pictures, cover > 0.5))


def correct(reading: Reading, scenes: Scene | Sequence[Scene]) -> dict[str, Tensor]:
    """Which attributes were read as meant: a bool tensor (B,) for each of ``ATTRIBUTES``.

    ``scenes``: one for every picture or, for a clip that shows the same throughout, a single one.
    """
    meant = [scenes] * len(reading.scenes) if isinstance(scenes, Scene) else scenes
    return {
        name: torch.tensor([getattr(a, name) == getattr(b, name) for a, b in zip(reading.scenes, meant, strict=True)])
        for name in ATTRIBUTES
    }


def fidelity(frames: Tensor, scene: Scene | Sequence[Scene]) -> Tensor:
    """Share of a scene's attributes that each frame of a clip (T, 128, 128, 3) shows: (T,) in [0, 1]."""
    return torch.stack(list(correct(read(frames), scene).values())).float().mean(0)


def cover_of(pictures: Tensor) -> Tensor:
    """How much of the shape's colour is at every pixel of pictures or frames (B, H, W, 3): (B, H, W) in [0, 1]."""
    pictures = pictures.float().cpu()
    return _cover(pictures, *_two_colours(pictures))[0].clamp(0, 1)


def shape_mask(pictures: Tensor) -> Tensor:
    """Where the shape is in pictures or frames (B, H, W, 3) in [0, 1]: (B, H, W) bool, all False without contrast.

    Unlike :func:`read` it takes any size, shape and orientation, and several shapes of one colour.
    """
    pictures = pictures.float().cpu()
    cover, contrast = _cover(pictures, *_two_colours(pictures))
    return (cover > 0.5) & (contrast >= MIN_CONTRAST)[:, None, None]


def _two_colours(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, H, W, 3) → colours (B, 3) of background and shape."""
    cells = F.avg_pool2d(pictures.movedim(-1, 1), CELL).movedim(1, -1)
    border = torch.cat([cells[:, [0, -1]].flatten(1, 2), cells[:, :, [0, -1]].flatten(1, 2)], dim=1)
    background = border.median(dim=1).values
    flat = cells.flatten(1, 2)
    distance = (flat - background[:, None]).norm(dim=-1)
    farthest = distance.topk(flat.shape[1] // 100).values[:, -1:]
    shape = torch.where((distance >= 0.7 * farthest)[..., None], flat, torch.nan)
    return background, shape.nanmedian(dim=1).values


def _cover(pictures: Tensor, background: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage (B, H, W), 0 at the background's colour (B, 3) and 1 at the shape's, and their distance (B,)."""
    axis = colour - background
    contrast = axis.norm(dim=-1)
    direction = axis / contrast.clamp(min=MIN_CONTRAST).square()[:, None]
    return torch.einsum("bhwc,bc->bhw", pictures, direction) - (background * direction).sum(1)[:, None, None], contrast


def _nearest(names: Mapping[str, tuple[float, ...]], values: Tensor) -> list[str]:
    """Name of the value nearest to each row of ``values`` (B, n)."""
    keys = list(names)
    return [keys[index] for index in torch.cdist(values, torch.tensor(list(names.values()))).argmin(1).tolist()]


@functools.cache
def _templates() -> tuple[Tensor, Tensor]:
    """Coverages (shapes × radii, WINDOW, WINDOW) with their centroids in the middle; the origins' distances (n, 2)."""
    size = WINDOW * CELL
    middle = torch.tensor([size / 2])
    covers, offsets = [], []
    for shape in SHAPES:
        for radius in TEMPLATE_RADII:
            offset = _centroid(coverage(shape, radius, middle, middle, size=size))[0] - size / 2
            covers.append(coverage(shape, radius, middle - offset[0], middle - offset[1], size=size))
            offsets.append(offset / CELL)
    return F.avg_pool2d(torch.cat(covers), CELL), torch.stack(offsets)


def _centroid(cover: Tensor) -> Tensor:
    """(B, h, w) → (B, 2), x and y of the centroid; the middle for an empty coverage."""
    height, width = cover.shape[1:]
    cover = cover + 1e-6
    x = (cover.sum(1) * (torch.arange(width) + 0.5)).sum(1)
    y = (cover.sum(2) * (torch.arange(height) + 0.5)).sum(1)
    return torch.stack([x, y], dim=1) / cover.sum((1, 2))[:, None]


def _match(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coverage (B, h, w) → index of the template of least squared error, its origin (B, 2) in pixels, its overlap."""
    templates, offsets = _templates()
    cover = (1.25 * cover - 0.125).clamp(0, 1)  # forgives noise and wrong colours, a tenth at either end
    corner = (_centroid(cover * (cover > 0.5)) - WINDOW / 2).round().long() - REACH
    crop, inside = (_crop(layer, corner, WINDOW + 2 * REACH) for layer in (cover, torch.ones_like(cover)))
    # ‖cover − template‖² within the frame, less what does not depend on the template
    kernels = templates[:, None]
    error = F.conv2d(inside[:, None], kernels.square()) - 2 * F.conv2d(crop[:, None], kernels)
    best = error.flatten(1).argmin(1)
    tries = 2 * REACH + 1
    template, shift = best // tries**2, torch.stack([best % tries, best // tries % tries], dim=1)
    shown, inside = (_crop(layer, shift, WINDOW, pad=0) for layer in (crop, inside))
    expected = templates[template] * inside
    common = torch.minimum(shown, expected).sum((1, 2))
    overlap = common / (cover.sum((1, 2)) + expected.sum((1, 2)) - common).clamp(min=1e-6)
    remainder = _centroid(shown) - _centroid(expected)  # less than a cell
    return template, (corner + shift + WINDOW / 2 - offsets[template] + remainder) * CELL, overlap


def _crop(layers: Tensor, corner: Tensor, size: int, pad: int = WINDOW // 2 + REACH) -> Tensor:
    """Windows (B, size, size) of (B, h, w), each with its own corner (B, 2) as x and y; zero outside the frame."""
    layers = F.pad(layers, (pad,) * 4)
    columns, rows = (corner.unsqueeze(-1) + pad + torch.arange(size)).unbind(1)
    return layers[torch.arange(len(layers))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _grain(pictures: Tensor, shape: Tensor) -> Tensor:
    """Pictures and where their shape is (B, H, W) bool → :attr:`Reading.grain`."""
    reach = FLAT // CELL
    cells = F.max_pool2d(torch.stack([shape, ~shape], dim=1).float(), CELL)
    near = F.max_pool2d(cells, 2 * reach + 1, stride=1, padding=reach)  # of either kind
    flat = near.amin(1) == 0
    flat |= ~flat.flatten(1).any(1)[:, None, None]  # edges everywhere: then all of it is grain
    flat = flat.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    squared, count = torch.zeros(len(pictures), 3), torch.zeros(len(pictures), 1)
    for area in (flat & shape, flat & ~shape):
        area = area.unsqueeze(-1)
        pixels = area.sum((1, 2), keepdim=True)
        mean = (pictures * area).sum((1, 2), keepdim=True) / pixels.clamp(min=1)
        squared = squared + ((pictures - mean).square() * area).sum((1, 2))
        count = count + pixels.flatten(1)
    return 255 * (squared / count).amax(1).sqrt()
