"""Batches of pictures as the image models learn them: latents, captions' tokens, and where outlines are."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..world.captions import caption
from ..world.latents import BLOCK, encode
from ..world.model import WorldTokenizer
from ..world.painting import paint
from ..world.scenes import random_scene
from .first.text import Captions
from .state import rank

UNSAID, PARTIAL = 0.1, 0.3  # shares of captions that are dropped, and that leave attributes out
OUTLINE_WEIGHT = 2.0  # more, of cells that an outline crosses, where noise does not hide it
OUTLINE = 0.15  # least difference in colour, within a block, that is no gradient's


@dataclass(frozen=True)
class Batch:
    """``latents`` (B, 4, 16, 16), or as the model has them; ``outlines`` in {0, 1}, (B, 1, 16, 16) or of the latents'
    shape; ``tokens`` (B, 32)."""

    latents: Tensor
    outlines: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(each.to(device) for each in (self.latents, self.outlines, self.tokens)))


class Drawn(Dataset, ABC):
    """The batch of every step, always the same one for the same ``seed``."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self._seed, self._tokenize = count, seed, Captions(WorldTokenizer)

    def __getitem__(self, step: int) -> Any:
        return self.draw(random.Random((self._seed + rank()) * 1_000_003 + step))

    @abstractmethod
    def draw(self, rng: random.Random) -> Any:
        """``count`` pictures or clips."""

    def tokens(self, caption: Callable[[Any, random.Random, float], str], scenes: list, rng: random.Random) -> Tensor:
        """Of their captions."""
        return self._tokenize(["" if rng.random() < UNSAID else caption(each, rng, PARTIAL) for each in scenes])


class Pictures(Drawn):
    def draw(self, rng: random.Random) -> Batch:
        scenes = [random_scene(rng) for _ in range(self.count)]
        tokens = self.tokens(caption, scenes, rng)
        pictures = paint(scenes, rng)
        return Batch(encode(pictures), outlines(pictures), tokens)


def outlines(pictures: Tensor) -> Tensor:
    """Which of the latents' cells an outline crosses: (B, H, W, 3) → (B, 1, H/8, W/8)."""
    channels = pictures.movedim(-1, 1)
    spread = F.max_pool2d(channels, BLOCK) + F.max_pool2d(-channels, BLOCK)
    return (spread.amax(1, keepdim=True) > OUTLINE).float()
