"""Latents of the pictures without drawing them twice.

A picture is ``background + coverage · (colour − background)`` and the encoder is linear, so its latents follow from two
numbers per 8×8 block of the coverage: the mean, and the left half's mean minus the right half's. Both are
computed once for every shape, size, position and jitter; after that a training batch costs a look-up.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ...motion import MOTIONS, MOVES, MovingScene, moving_caption, moving_coverage, random_moving_scene
from ...shapes import COLOURS, COLUMNS, RADII, ROWS, SHAPES, Scene, caption, coverage, random_scene

BLOCK = 8
LUMA = (0.299, 0.587, 0.114)
COLOUR_GAIN, EDGE_GAIN = 2.4, 4.0  # bring the latents near unit variance
JITTER = range(-3, 4)  # pixels, in x and y
SCALES = (0.95, 1.0, 1.05)
SPINNING = 3  # times as often as other motions: the picture model never drew a shape that is not upright


def encode(pictures: Tensor) -> Tensor:
    """What the demo VAE's encoder computes: (B, H, W, 3) in [0, 1] → (B, 4, H/8, W/8)."""
    mean, edge = block_statistics(pictures.movedim(-1, 1))
    luma_edge = torch.einsum("bchw,c->bhw", edge, torch.tensor(LUMA))
    return torch.cat([(mean - 0.5) * COLOUR_GAIN, luma_edge.unsqueeze(1) * EDGE_GAIN], dim=1)


def block_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, W) → mean of every block, and left half's mean − right half's, each (..., H/8, W/8)."""
    *lead, height, width = image.shape
    halves = image.reshape(*lead, height // BLOCK, BLOCK, width // BLOCK, 2, BLOCK // 2).mean(dim=(-4, -1))
    return halves.mean(-1), halves[..., 0] - halves[..., 1]


class LatentBank:
    """Block statistics of every shape × size × row × column × scale × jitter (about 48,000 coverages)."""

    def __init__(self) -> None:
        dx, dy = (
            axis.flatten().float() for axis in torch.meshgrid(torch.tensor(JITTER), torch.tensor(JITTER), indexing="xy")
        )
        self._statistics: dict[tuple[str, str, str, str], Tensor] = {}
        for shape in SHAPES:
            for size, radius in RADII.items():
                for row, y in ROWS.items():
                    for column, x in COLUMNS.items():
                        cover = torch.cat([coverage(shape, radius * scale, x + dx, y + dy) for scale in SCALES])
                        self._statistics[shape, size, row, column] = torch.stack(block_statistics(cover), dim=1).half()

    def latent(self, scene: Scene, rng: random.Random) -> Tensor:
        """Latent (4, 16, 16) of one jittered picture of ``scene``."""
        variants = self._statistics[scene.shape, scene.size, scene.row, scene.column]
        return coloured(variants[rng.randrange(len(variants))].float(), scene)

    def batch(self, count: int, rng: random.Random, partial: float = 0.0) -> tuple[Tensor, list[str]]:
        """Latents (count, 4, 16, 16) and captions; a share ``partial`` of the captions leaves attributes out."""
        scenes = [random_scene(rng) for _ in range(count)]
        return torch.stack([self.latent(s, rng) for s in scenes]), [caption(s, rng, partial) for s in scenes]


def coloured(statistics: Tensor, scene: Scene) -> Tensor:
    """Means and edges (..., 2, 16, 16) of a coverage → latents (..., 4, 16, 16) in the scene's colours."""
    mean, edge = statistics.split(1, dim=-3)
    front, back = (torch.tensor(COLOURS[name])[:, None, None] for name in (scene.colour, scene.background))
    luma_edge = edge * torch.dot((front - back).flatten(), torch.tensor(LUMA))
    return torch.cat([(back + mean * (front - back) - 0.5) * COLOUR_GAIN, luma_edge * EDGE_GAIN], dim=-3)


class ClipBank:
    """Block statistics of clips: every shape × size × place × motion, in ``variants`` jitters."""

    def __init__(self, variants: int, seed: int) -> None:
        rng = random.Random(seed)
        self._statistics: dict[tuple[str, str, str, str, str], Tensor] = {}
        for motion in MOTIONS:
            x, y = MOVES.get(motion, (0, 0))
            for shape in SHAPES:
                for size in RADII:
                    for row in ["middle"] if y else ROWS:
                        for column in ["centre"] if x else COLUMNS:
                            moving = MovingScene(Scene(shape, "", "", size, row, column), motion)
                            jitters = [(rng.uniform(-3, 3), rng.uniform(-3, 3)) for _ in range(variants)]
                            covers = torch.stack([moving_coverage(moving, jitter) for jitter in jitters])
                            statistics = torch.stack(block_statistics(covers), dim=2)
                            self._statistics[shape, size, row, column, motion] = statistics.half()

    def batch(
        self, count: int, frames: list[int], rng: random.Random, partial: float = 0.0
    ) -> tuple[Tensor, list[str]]:
        """Latents (count · F, 4, 16, 16) of these ``frames`` of clips, and the clips' captions."""
        clips = [random_moving_scene(rng, spinning=SPINNING) for _ in range(count)]
        latents = [self.latents(clip, frames, rng) for clip in clips]
        return torch.cat(latents), [moving_caption(clip, rng, partial) for clip in clips]

    def latents(self, clip: MovingScene, frames: list[int], rng: random.Random) -> Tensor:
        """Latents (F, 4, 16, 16) of these frames of ``clip`` in one of its jitters."""
        scene = clip.scene
        variants = self._statistics[scene.shape, scene.size, scene.row, scene.column, clip.motion]
        return coloured(variants[rng.randrange(len(variants)), frames].float(), scene)
