"""Batches of pictures as the image models learn them: latents, captions' tokens, and where outlines are."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..world.captions import caption
from ..world.latents import BLOCK, encode
from ..world.painting import paint
from ..world.scenes import random_scene
from .text import Captions

UNSAID, PARTIAL = 0.1, 0.3  # shares of captions that are dropped, and that leave attributes out
OUTLINE_WEIGHT = 2.0  # more, of cells that an outline crosses, where noise does not hide it
OUTLINE = 0.15  # least difference in colour, within a block, that is no gradient's


@dataclass(frozen=True)
class Batch:
    """``latents`` (B, 4, 16, 16), ``outlines`` (B, 1, 16, 16) in {0, 1}, ``tokens`` (B, 32)."""

    latents: Tensor
    outlines: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(each.to(device) for each in (self.latents, self.outlines, self.tokens)))


class Pictures(Dataset):
    """The batch of every step, always the same one for the same ``seed``."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self._tokenize = count, seed, Captions()

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(self._seed * 1_000_003 + step)
        scenes = [random_scene(rng) for _ in range(self._count)]
        texts = ["" if rng.random() < UNSAID else caption(scene, rng, PARTIAL) for scene in scenes]
        pictures = paint(scenes, rng)
        return Batch(encode(pictures), outlines(pictures), self._tokenize(texts))


def outlines(pictures: Tensor) -> Tensor:
    """Which of the latents' cells an outline crosses: (B, H, W, 3) → (B, 1, H/8, W/8)."""
    channels = pictures.movedim(-1, 1)
    spread = F.max_pool2d(channels, BLOCK) + F.max_pool2d(-channels, BLOCK)
    return (spread.amax(1, keepdim=True) > OUTLINE).float()
