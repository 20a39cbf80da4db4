"""Samples clips from the demo video model and says how many move as their captions ask."""

from __future__ import annotations

import random
from dataclasses import dataclass

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .evaluation import CFG, SAMPLER, SCHEDULER, conditioning, wilson
from .motion import FRAMES, MOTIONS, MovingScene, moving_caption, random_moving_scene
from .motion_reader import MotionReading, read_motion
from .reader import correct

STEPS = 12


@dataclass(frozen=True)
class ClipsEvaluation:
    """Clips (N, FRAMES, 128, 128, 3), their captions, what they should show and what they do."""

    clips: Tensor
    captions: list[str]
    scenes: list[MovingScene]
    readings: list[MotionReading]

    @property
    def moves_right(self) -> Tensor:
        """(N,) bool."""
        pairs = zip(self.readings, self.scenes, strict=True)
        return torch.tensor([reading.motion == scene.motion for reading, scene in pairs])

    def right(self, attribute: str) -> float:
        """The share of all frames that show an attribute as meant."""
        pairs = zip(self.readings, self.scenes, strict=True)
        return torch.cat([correct(each.reading, meant.scene)[attribute] for each, meant in pairs]).float().mean().item()


@torch.inference_mode()
def sample_clip(
    model: ModelPatcher, clip: CLIP, vae: VAE, caption: str, seed: int, *, steps: int = STEPS, cfg: float = CFG
) -> Tensor:
    """A clip (FRAMES, 128, 128, 3) in [0, 1] from independent noise."""
    positive, negative = conditioning(clip, [caption, ""])
    noise = torch.randn(FRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    still = torch.zeros_like(noise)
    latents = comfy.sample.sample(
        model, noise, steps, cfg, SAMPLER, SCHEDULER, [positive], [negative], still, disable_pbar=True, seed=seed
    )
    return vae.decode(latents).float().cpu()


def evaluate_clips(
    model: ModelPatcher, clip: CLIP, vae: VAE, count: int, seed: int = 0, steps: int = STEPS
) -> ClipsEvaluation:
    """Random clips and captions as in training, sampled and read."""
    rng = random.Random(seed)
    scenes = [random_moving_scene(rng) for _ in range(count)]
    captions = [moving_caption(scene, rng) for scene in scenes]
    clips = [sample_clip(model, clip, vae, text, seed * count + n, steps=steps) for n, text in enumerate(captions)]
    return ClipsEvaluation(torch.stack(clips), captions, scenes, [read_motion(each) for each in clips])


def table(evaluation: ClipsEvaluation) -> str:
    """The shares of clips that move as asked, by motion, with their 95 % intervals, in Markdown."""
    lines = [f"| over {len(evaluation.scenes)} clips | moves as asked | 95 % interval |", "|---|---|---|"]
    motions = [scene.motion for scene in evaluation.scenes]
    for name in (*MOTIONS, "all"):
        chosen = torch.tensor([name in (motion, "all") for motion in motions])
        if chosen.any():
            right, count = int(evaluation.moves_right[chosen].sum()), int(chosen.sum())
            low, high = wilson(right, count)
            lines.append(f"| {name} | {right} of {count} | {low:.0%} to {high:.0%} |")
    return "\n".join(lines)
