"""Clips drawn by code: one shape or thing that moves, turns or grows on a plain background, and exactly where it is.

No demo model has seen it: they learned from upright pictures with the shape at one of nine places.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import RADII, SHAPES, SIZE, coverage, paint
from .world import things

KINDS = (*SHAPES, *sorted(set(things.THINGS) - set(SHAPES)))
MOTIONS = ("slide", "turn", "grow", "all")
REACH = 24.0  # pixels of a picture of SIZE, from the middle of a slide to either end
STRAY = 8.0  # pixels, how far that middle may be off the picture's
TURN = math.pi / 2
GROWTH = 1.25  # largest and smallest radius, as a factor and its inverse


@dataclass(frozen=True)
class RenderedClip:
    """What was drawn, and the truth about it."""

    frames: Tensor
    """(F, H, W, 3) float32 RGB in [0, 1], ComfyUI's IMAGE layout."""
    mask: Tensor
    """(F, H, W) float32 in [0, 1]: share of every pixel that the shape covers, ComfyUI's MASK layout."""
    centre: Tensor
    """(F, 2) float32: x and y of the shape's origin in pixels."""


def render_clip(
    shape: str, colour: str, background: str, motion: str = "slide", frames: int = 16, seed: int = 0, size: int = SIZE
) -> RenderedClip:
    """A clip of one shape, even in time from the first frame to the last.

    Args:
        shape, colour, background: One of ``KINDS``; two different ones of ``shapes.COLOURS``.
        motion: slide: across the middle, in a straight line. turn: by a quarter, on the spot (a circle or
            ring shows none of it). grow: or shrink, on the spot. all: the three at once.
        seed: Where it starts, in which direction it goes and how large it is: the same for the same seed, whatever
            the shape, the colours and the number of frames.
        size: Height and width in pixels.

    Raises:
        ValueError: for a colour on itself, or a shape, a motion or a number of frames that does not exist.
    """
    if shape not in KINDS:
        raise ValueError(f"shape is {shape!r}, expected one of {', '.join(KINDS)}")
    if motion not in MOTIONS:
        raise ValueError(f"motion is {motion!r}, expected one of {', '.join(MOTIONS)}")
    if colour == background:
        raise ValueError(f"colour and background are both {colour}, expected two different ones")
    if frames < 1:
        raise ValueError(f"frames is {frames}, expected 1 or more")
    rng = random.Random(seed)
    middle = torch.tensor([SIZE / 2 + rng.uniform(-STRAY, STRAY) for _ in "xy"])
    heading, radius = rng.uniform(0, 2 * math.pi), rng.uniform(*RADII.values())
    turn, growth = (rng.choice((-amount, amount)) for amount in (TURN, math.log(GROWTH)))

    moves = {motion} if motion != "all" else set(MOTIONS)
    time = torch.linspace(0, 1, frames)
    along = (2 * time - 1) * REACH * ("slide" in moves)
    centre = middle + along[:, None] * torch.tensor([math.cos(heading), math.sin(heading)])
    angles = time * turn * ("turn" in moves)
    radii = radius * torch.exp((2 * time - 1) * growth * ("grow" in moves))
    centre, radii = centre * size / SIZE, radii * size / SIZE
    mask = torch.cat(
        [
            _coverage(shape, r, x, y, angle, size)
            for r, (x, y), angle in zip(radii.tolist(), centre[..., None], angles.tolist(), strict=True)
        ]
    )
    return RenderedClip(paint(mask, colour, background), mask, centre)


def _coverage(shape: str, radius: float, x: Tensor, y: Tensor, angle: float, size: int) -> Tensor:
    """(B, size, size), for centres (B,)."""
    if shape in SHAPES:  # the first model's own; the world's things of these names have other outlines
        return coverage(shape, radius, x, y, angle, size)
    kinds = torch.full((len(x),), things.THINGS.index(shape))
    return things.coverage(kinds, x, y, torch.full_like(x, radius), torch.full_like(x, angle), size)
