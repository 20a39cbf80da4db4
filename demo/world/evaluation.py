"""Samples pictures from a model of the world and measures them against its gates."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ..evaluation import conditioning, sample, wilson
from .captions import caption
from .form import Form, form, largest_speck
from .painting import paint
from .reader import Reading, correct, read
from .scenes import Scene, random_scene

SPECK = 12  # pixels
SIGMAS = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 10.0)
GATES = {"thing": 0.92, "colour": 0.98, "background": 0.98, "position": 0.95, "size": 0.90}
OUTLINE_GATES = {"mean": 0.35, "worst": 1.0}  # pixels; the latter at the 95th percentile along the outline


@dataclass(frozen=True)
class Seen:
    """A picture (128, 128, 3), what it should show, what it does, and the form of its things."""

    picture: Tensor
    text: str
    scene: Scene
    reading: Reading
    forms: tuple[Form, ...]
    speck: int

    @property
    def correct(self) -> dict[str, bool]:
        return correct(self.reading, self.scene)


def look(picture: Tensor, text: str, scene: Scene) -> Seen:
    reading = read(picture)
    forms = tuple(form(each) for each in reading.found)
    return Seen(picture, text, scene, reading, forms, largest_speck(picture, reading, list(forms)))


def evaluate(
    model: ModelPatcher, clip: CLIP, vae: VAE, count: int, seed: int, *, pairs: bool = False, **sampling
) -> list[Seen]:
    """Random scenes and captions, of one thing or of two, sampled and read. ``sampling``: steps, cfg and the like."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, pairs=float(pairs)) for _ in range(count)]
    texts = [caption(scene, rng) for scene in scenes]
    pictures = sample(model, clip, vae, texts, seed, **sampling)
    return [look(*each) for each in zip(pictures, texts, scenes, strict=True)]


def table(seen: list[Seen]) -> str:
    """Shares of what is right with their 95 % intervals, and figures of form, beside the gates, in Markdown."""
    lines = [f"| over {len(seen)} pictures | reached | 95 % interval | gate |", "|---|---|---|---|"]
    for name, gate in GATES.items():
        lines.append(_share(name, [each.correct[name] for each in seen], f"≥ {gate:.0%}"))
    lines.append(_share("all of them", [all(each.correct.values()) for each in seen], ""))
    lines.append(_share(f"no speck larger than {SPECK} pixels", [each.speck <= SPECK for each in seen], "≥ 99.5%"))
    forms = [one for each in seen if each.correct["thing"] for one in each.forms]
    if forms:
        off = torch.cat([each.off for each in forms])
        overlap = torch.tensor([each.overlap for each in forms]).mean()
        lines += [
            f"| outline, mean | {off.mean():.2f} px | | ≤ {OUTLINE_GATES['mean']} px |",
            f"| outline, 95th percentile | {off.quantile(0.95):.2f} px | | ≤ {OUTLINE_GATES['worst']} px |",
            f"| overlap with the ideal | {overlap:.3f} | | |",
        ]
    return "\n".join(lines)


def _share(name: str, right: list[bool], gate: str) -> str:
    low, high = wilson(sum(right), len(right))
    return f"| {name} | {sum(right) / len(right):.1%} | {low:.1%} to {high:.1%} | {gate} |"


def circles(model: ModelPatcher, clip: CLIP, vae: VAE, count: int, seed: int, **sampling) -> Tensor:
    """How far off, in pixels, the outlines of circles are, which the first demo model draws as well: all points."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, pairs=0.0, backgrounds=0.0, fills=0.0) for _ in range(count)]
    scenes = [replace(each, things=(replace(each.things[0], kind="circle"),)) for each in scenes]
    words = [
        f"a {s.things[0].size} {s.things[0].surface.colour} circle on a {s.background.colour} background"
        for s in scenes
    ]
    pictures = sample(model, clip, vae, words, seed, **sampling)
    return torch.cat([_off(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)])


@torch.inference_mode()
def one_step_outlines(model: ModelPatcher, clip: CLIP, vae: VAE, count: int, seed: int = 0) -> dict[float, float]:
    """How far off, in pixels, outlines are in what the model predicts at once from drawn pictures noised to σ."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, pairs=0.0, backgrounds=0.0, fills=0.0) for _ in range(count)]
    context = torch.cat([tensor for tensor, _ in conditioning(clip, [caption(scene, rng) for scene in scenes])])
    core = model.model
    clean = core.process_latent_in(vae.encode(paint(scenes, rng)))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    table = {}
    for sigma in (0.0, *SIGMAS):
        noised, level = clean + sigma * noise, torch.full((count,), sigma)
        predicted = core.apply_model(noised, level, c_crossattn=context) if sigma else clean
        pictures = vae.decode(core.process_latent_out(predicted.float())).float().cpu()
        off = [_off(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
        table[sigma] = torch.cat(off).mean().item()
    return table


def _off(picture: Tensor, scene: Scene) -> Tensor:
    found = read(picture).found
    return form(found[0], scene.things[0].kind).off if found else torch.empty(0)
