"""The world's latents: SD1.5's format, 8×8 pixels to four numbers, by an encoder that is linear and set by hand.

The first three are a block's red, green and blue. Each is averaged mostly over a different part of the block, so that
an outline is seen from three points instead of one; in a flat area they are its colour. The fourth is how much brighter
the left half is than the right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def set_encoder(encoder: nn.Module) -> None:
    """TAESD's encoder as :func:`encode`: its blocks pass on what is positive, strided convolutions average 2×2.

    After the last of those, channel ``3 · quarter + colour`` is the mean of a block's quarter.
    """
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    first, *strided, last = (layer for layer in encoder.children() if isinstance(layer, nn.Conv2d))
    weights = quarter_weights()
    with torch.no_grad():
        for colour in range(3):
            first.weight[colour, colour, 1, 1] = 1.0
            for layer in strided[:-1]:
                layer.weight[colour, colour, 1:, 1:] = 0.25
            for quarter in range(4):
                channel = 3 * quarter + colour
                strided[-1].weight[channel, colour, 1 + quarter // 2, 1 + quarter % 2] = 1.0
                last.weight[:, channel, 1, 1] = weights[:, colour, quarter]
        assert last.bias is not None
        last.bias[:3] = -0.5 * COLOUR_GAIN
