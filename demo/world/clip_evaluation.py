"""Samples clips from the world's video models and measures them against their gates."""

from __future__ import annotations

import random
from dataclasses import dataclass

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ..evaluation import SAMPLER, SCHEDULER, conditioning, wilson
from ..motion import FRAMES
from .clip_reader import ClipReading, read_clip
from .motion import MOTIONS, MovingScene, moving_caption, random_moving_scene
from .transformer import CHUNK
from .transformer import FRAMES as LENGTHS

ATTRIBUTES = ("thing", "colour", "background", "motion")


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
            return dict.fromkeys(ATTRIBUTES, False)
        (thing,), reading = self.moving.scene.things, self.reading
        return {
            "thing": reading.kind == thing.kind,
            "colour": set(reading.surface.colours) == set(thing.surface.colours),
            "background": set(reading.background.colours) == set(self.moving.scene.background.colours),
            "motion": reading.motion == self.moving.motion,
        }


@dataclass(frozen=True)
class Kind:
    """How a model's clips are sampled, from noise of ``shape``, and what they must reach."""

    shape: tuple[int, ...]
    sampler: str
    scheduler: str
    gates: dict[str, float]
    """Least shares, of attributes and of clips with a motion."""
    outline_gate: float
    """Pixels, on average."""


VIDEO = Kind(
    shape=(FRAMES, 4, 16, 16),
    sampler=SAMPLER,
    scheduler=SCHEDULER,
    gates={"motion": 0.90, "spinning": 0.60},
    outline_gate=0.6,
)
TRANSFORMER = Kind(
    shape=(1, 4 * CHUNK, 1 + (max(LENGTHS) - 1) // CHUNK, 16, 16),
    sampler="euler",
    scheduler="simple",
    gates={"thing": 0.85, "colour": 0.95, "background": 0.95, "motion": 0.85},
    outline_gate=0.8,
)


@torch.inference_mode()
def sample_clip(
    kind: Kind, model: ModelPatcher, clip: CLIP, vae: VAE, text: str, seed: int, *, steps: int, cfg: float
) -> Tensor:
    """A clip (frames, 128, 128, 3) in [0, 1]."""
    positive, negative = conditioning(clip, [text, ""])
    noise = torch.randn(kind.shape, generator=torch.Generator().manual_seed(seed))
    latents = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        kind.sampler,
        kind.scheduler,
        [positive],
        [negative],
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=seed,
    )
    return vae.decode(latents).flatten(0, -4).float().cpu()


def evaluate_clips(
    kind: Kind,
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    count: int,
    seed: int,
    *,
    steps: int,
    cfg: float,
    motion: str | None = None,
) -> list[SeenClip]:
    """Random scenes and captions, or only those with a ``motion``, sampled and read."""
    rng, seen = random.Random(seed), []
    for index in range(count):
        moving = random_moving_scene(rng)
        while motion not in (None, moving.motion):
            moving = random_moving_scene(rng)
        text = moving_caption(moving, rng)
        frames = sample_clip(kind, model, clip, vae, text, seed * count + index, steps=steps, cfg=cfg)
        seen.append(SeenClip(frames, text, moving, read_clip(frames)))
    return seen


def table(seen: list[SeenClip], kind: Kind) -> str:
    """Shares of what is right with their 95 % intervals, and the outlines, beside the gates, in Markdown."""
    lines = [f"| over {len(seen)} clips | reached | 95 % interval | gate |", "|---|---|---|---|"]
    rows = [(name, name, seen) for name in ATTRIBUTES]
    rows += [(motion, "motion", [each for each in seen if each.moving.motion == motion]) for motion in MOTIONS]
    for name, attribute, chosen in rows:
        if chosen:
            right = sum(each.correct[attribute] for each in chosen)
            low, high = wilson(right, len(chosen))
            gate = f"≥ {kind.gates[name]:.0%}" if name in kind.gates else ""
            lines.append(f"| {name} | {right} of {len(chosen)} | {low:.0%} to {high:.0%} | {gate} |")
    forms = [one for each in seen if each.reading and each.correct["thing"] for one in each.reading.forms]
    if forms:
        off = torch.cat([each.off for each in forms]).mean()
        lines.append(f"| outline, mean | {off:.2f} px | | ≤ {kind.outline_gate} px |")
    return "\n".join(lines)
