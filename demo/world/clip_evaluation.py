"""Samples clips from the world's video transformer and measures them against its gates."""

from __future__ import annotations

import random
from dataclasses import dataclass

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ..evaluation import conditioning, wilson
from .clip_reader import ClipReading, read_clip
from .motion import MOTIONS, MovingScene, moving_caption, random_moving_scene
from .transformer import CHUNK, unstack

FRAMES = 17
GATES = {"thing": 0.85, "colour": 0.95, "background": 0.95, "motion": 0.85}
OUTLINE_GATE = 0.8  # pixels, on average


@dataclass(frozen=True)
class SeenClip:
    """A clip (T, 128, 128, 3), what it should show and what it does, if it shows anything."""

    clip: Tensor
    text: str
    moving: MovingScene
    reading: ClipReading | None

    @property
    def correct(self) -> dict[str, bool]:
        """Which attributes are as meant."""
        if self.reading is None:
            return dict.fromkeys(GATES, False)
        (thing,), reading = self.moving.scene.things, self.reading
        return {
            "thing": reading.kind == thing.kind,
            "colour": set(reading.surface.colours) == set(thing.surface.colours),
            "background": set(reading.background.colours) == set(self.moving.scene.background.colours),
            "motion": reading.motion == self.moving.motion,
        }


@torch.inference_mode()
def sample_clip(
    model: ModelPatcher, clip: CLIP, vae: VAE, text: str, seed: int, *, frames: int = FRAMES, steps: int, cfg: float
) -> Tensor:
    """A clip (frames, 128, 128, 3) in [0, 1]."""
    positive, negative = conditioning(clip, [text, ""])
    shape = (1, 4 * CHUNK, 1 + (frames - 1) // CHUNK, 16, 16)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latents = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        [positive],
        [negative],
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=seed,
    )
    return vae.decode(unstack(latents)[0]).float().cpu()


def evaluate_clips(
    model: ModelPatcher, clip: CLIP, vae: VAE, count: int, seed: int, *, steps: int, cfg: float
) -> list[SeenClip]:
    """Random scenes and captions, sampled and read."""
    rng, seen = random.Random(seed), []
    for index in range(count):
        moving = random_moving_scene(rng)
        text = moving_caption(moving, rng)
        frames = sample_clip(model, clip, vae, text, seed * count + index, steps=steps, cfg=cfg)
        seen.append(SeenClip(frames, text, moving, read_clip(frames)))
    return seen


def table(seen: list[SeenClip]) -> str:
    """Shares of what is right with their 95 % intervals, and the outlines, beside the gates, in Markdown."""
    lines = [f"| over {len(seen)} clips | reached | 95 % interval | gate |", "|---|---|---|---|"]
    rows = [(name, f"≥ {gate:.0%}", seen, name) for name, gate in GATES.items()]
    rows += [(motion, "", [each for each in seen if each.moving.motion == motion], "motion") for motion in MOTIONS]
    for name, gate, chosen, attribute in rows:
        if chosen:
            right = sum(each.correct[attribute] for each in chosen)
            low, high = wilson(right, len(chosen))
            lines.append(f"| {name} | {right} of {len(chosen)} | {low:.0%} to {high:.0%} | {gate} |")
    forms = [one for each in seen if each.reading and each.correct["thing"] for one in each.reading.forms]
    if forms:
        off = torch.cat([each.off for each in forms]).mean()
        lines.append(f"| outline, mean | {off:.2f} px | | ≤ {OUTLINE_GATE} px |")
    return "\n".join(lines)
