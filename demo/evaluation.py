"""Samples pictures and clips from the demo models, and says how many pictures show what their captions ask for.

Everything goes through ComfyUI's own loaders, sampler and VAE; :mod:`.reader` reads the pictures.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .motion import FRAMES
from .reader import Reading, correct, read
from .shapes import Scene, caption, draw, random_scene

BATCH = 50
STEPS, CFG, SAMPLER, SCHEDULER = 25, 5.0, "dpmpp_2m", "karras"


@dataclass(frozen=True)
class Evaluation:
    """Pictures (B, 128, 128, 3), what they should show, what they do, and which attributes are right, (B,) each."""

    pictures: Tensor
    captions: list[str]
    scenes: list[Scene]
    reading: Reading
    correct: dict[str, Tensor]


@torch.inference_mode()
def sample(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    captions: list[str],
    seed: int,
    *,
    steps: int = STEPS,
    cfg: float = CFG,
    sampler: str = SAMPLER,
    scheduler: str = SCHEDULER,
) -> Tensor:
    """One picture for every caption: (B, 128, 128, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    (negative,) = conditioning(clip, [""])
    pictures = []
    for start in range(0, len(captions), BATCH):
        positive = conditioning(clip, captions[start : start + BATCH])
        pooled = torch.cat([options["pooled_output"] for _, options in positive])
        together = [torch.cat([tensor for tensor, _ in positive]), {"pooled_output": pooled}]
        noise = torch.randn(len(positive), 4, 16, 16, generator=generator)
        latents = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            [together],
            [negative],
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seed,
        )
        pictures.append(vae.decode(latents))
    return torch.cat(pictures).float().cpu()


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


def conditioning(clip: CLIP, captions: list[str]) -> list[list]:
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in captions]


def evaluate(model: ModelPatcher, clip: CLIP, vae: VAE, count: int = 200, seed: int = 0, **sampling) -> Evaluation:
    """Random scenes and captions as in training, sampled and read. ``sampling``: options of :func:`sample`."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    captions = [caption(scene, rng) for scene in scenes]
    pictures = sample(model, clip, vae, captions, seed, **sampling)
    reading = read(pictures)
    return Evaluation(pictures, captions, scenes, reading, correct(reading, scenes))


def rendered(count: int, seed: int = 0) -> Tensor:
    """Pictures drawn by code, jittered as in training: (count, 128, 128, 3) in [0, 1]."""
    rng = random.Random(seed)
    jitters = ((rng.randint(-3, 3), rng.randint(-3, 3), rng.uniform(0.95, 1.05)) for _ in range(count))
    return torch.stack([draw(random_scene(rng), *jitter) for jitter in jitters])


@torch.inference_mode()
def reconstruction(vae: VAE, pictures: Tensor) -> float:
    """PSNR in dB of pictures that went through the VAE's encoder and decoder."""
    error = vae.decode(vae.encode(pictures)).float().cpu() - pictures
    return -10 * math.log10(error.square().mean().item())


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def table(evaluation: Evaluation) -> str:
    """The shares of right attributes with their 95 % intervals, and the grain, in Markdown."""
    count = len(evaluation.scenes)
    lines = [f"| over {count} pictures | right | 95 % interval |", "|---|---|---|"]
    for name, right in evaluation.correct.items():
        low, high = wilson(int(right.sum()), count)
        lines.append(f"| {name} | {right.float().mean():.1%} | {low:.1%} to {high:.1%} |")
    every = torch.stack(list(evaluation.correct.values())).all(0)
    low, high = wilson(int(every.sum()), count)
    lines.append(f"| all of them | {every.float().mean():.1%} | {low:.1%} to {high:.1%} |")
    grain = evaluation.reading.grain
    lines += [
        "",
        f"Grain in flat areas: median {grain.median():.2f}, 95th percentile {grain.quantile(0.95):.2f} (of 255).",
    ]
    return "\n".join(lines)
