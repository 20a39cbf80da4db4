"""The world's latents: SD1.5's format, 8×8 pixels to four numbers, by an encoder that is linear and set by hand.

The first three are a block's red, green and blue, each averaged mostly over another part of it, so that an outline is
seen from three points, not thrice from the same; the fourth is how much brighter the left half is than the right. In
a flat area they are its colour.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK, CELL = 8, 4  # pixels; weights are given for a block's quarters of CELL
LUMA = (0.299, 0.587, 0.114)
COLOUR_GAIN, EDGE_GAIN = 2.4, 4.0  # bring the latents near unit variance
PARTS = {  # of a block, where a colour is averaged: weights of its quarters, top left to bottom right
    "red": (0.4, 0.4, 0.1, 0.1),
    "green": (0.1, 0.1, 0.7, 0.1),
    "blue": (0.1, 0.1, 0.1, 0.7),
}
HALVES = (0.5, -0.5, 0.5, -0.5)


def quarter_weights() -> Tensor:
    """(4, 3, 4): from the quarters of three colours to the latents, before their offset."""
    weights = torch.zeros(4, 3, 4)
    for index, part in enumerate(PARTS.values()):
        weights[index, index] = torch.tensor(part) * COLOUR_GAIN
    weights[3] = torch.tensor(LUMA)[:, None] * torch.tensor(HALVES) * EDGE_GAIN
    return weights


def encode(pictures: Tensor) -> Tensor:
    """What the VAE's encoder computes: (B, H, W, 3) in [0, 1] → (B, 4, H/8, W/8)."""
    batch, height, width, _ = pictures.shape
    quarters = pictures.reshape(batch, height // BLOCK, 2, CELL, width // BLOCK, 2, CELL, 3).mean((3, 6))
    latents = torch.einsum("bhywxc,lcyx->blhw", quarters, quarter_weights().unflatten(2, (2, 2)).to(pictures))
    latents[:, :3] -= 0.5 * COLOUR_GAIN
    return latents
