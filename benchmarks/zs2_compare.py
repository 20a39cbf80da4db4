"""ZS² beside plain sampling on the demo model: is the clip more coherent, and does it still obey the prompt?

    python benchmarks/zs2_compare.py --comfyui DIR [--clips 12] [--frames 8] [--json FILE] [--publish]

Random scenes and seeds, the same for all four ways: frames drawn independently or with dependency noise, each
with self-attention or with momentum attention. Every scene is asked for twice: by a prompt that says all of it,
and by one that leaves size and place open, so that plain sampling decides anew at every frame. ``--publish``
writes the tables and the contact sheet that the README shows. Run it with the Python of that ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from studies import PACK, PICTURES, enter_comfyui, font, pack
from torch import Tensor

SHEET = PICTURES / "zs2_compare.jpg"
README = PACK / "README.md"
SHOWN = 4
"""Clips on the contact sheet."""
MARKS = ("<!-- zs2_compare -->\n", "<!-- end of zs2_compare -->")

WAYS = {
    "independent noise, self-attention": (False, False),
    "dependency noise alone": (True, False),
    "momentum attention alone": (False, True),
    "both (ZS²)": (True, True),
}
BASELINE, *_, OURS = WAYS
PROMPTS = {
    "The prompt says everything": ("shape", "colour", "background", "size", "position"),
    "The prompt leaves size and place open": ("shape", "colour", "background"),
}
"""What is read off the frames to see whether they obey."""
FULL, OPEN = PROMPTS
MEASURES = {
    "ssim": ("SSIM of neighbouring frames", ".3f"),
    "psnr": ("PSNR of neighbouring frames (dB)", ".1f"),
    "fidelity": ("obeys the prompt", ".1%"),
    "motion": ("motion (pixels)", ".1f"),
}


@dataclass(frozen=True)
class Settings:
    """What all clips have in common."""

    frames: int
    kl: float
    mu: float
    steps: int = 20
    cfg: float = 5.0
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"


@dataclass(frozen=True)
class Clip:
    kind: str
    """One of ``PROMPTS``."""
    prompt: str
    seed: int
    scene: Any
    frames: Mapping[str, Tensor]
    """Of every way: (frames, 128, 128, 3) in [0, 1]."""


def draw_clips(count: int, settings: Settings) -> Iterator[Clip]:
    """Clips for ``count`` scenes by either kind of prompt, each in every way, drawn by the nodes themselves."""
    import comfy.sample

    loader, shapes = pack("demo.model"), pack("demo.shapes")
    noise_nodes, momentum = pack("nodes.noise"), pack("nodes.momentum").TemporalMomentumAttention
    model, text, vae = loader.load_model(), loader.load_clip(), loader.load_vae()
    (tapped,) = momentum.execute(model, settings.mu).args
    latent = {"samples": torch.zeros(settings.frames, 4, 16, 16)}
    negative = text.encode_from_tokens_scheduled(text.tokenize(""))
    rng = random.Random(0)
    for seed in range(count):
        scene = shapes.random_scene(rng)
        prompts = {
            FULL: shapes.caption(scene, rng),
            OPEN: f"a {scene.colour} {scene.shape} on a {scene.background} background",
        }
        (independent,) = noise_nodes.VideoNoisePrior.execute(seed, "iid", 0.0).args
        (dependent,) = noise_nodes.DependencyNoise.execute(
            seed, settings.kl, "", "generalised", "bisection", 10, 15
        ).args
        for kind, prompt in prompts.items():
            positive = text.encode_from_tokens_scheduled(text.tokenize(prompt))
            frames = {}
            for way, (with_noise, with_attention) in WAYS.items():
                noise = (dependent if with_noise else independent).generate_noise(latent)
                latents = comfy.sample.sample(
                    tapped if with_attention else model,
                    noise,
                    settings.steps,
                    settings.cfg,
                    settings.sampler,
                    settings.scheduler,
                    positive,
                    negative,
                    latent["samples"],
                    disable_pbar=True,
                    seed=seed,
                )
                frames[way] = vae.decode(latents).float().cpu().clamp(0, 1)
            yield Clip(kind, prompt, seed, scene, frames)


def measure(frames: Tensor, clip: Clip) -> dict[str, float]:
    """Figures of one way (frames, 128, 128, 3) of drawing ``clip``.

    ``motion`` is how far the shape's centre gets from where it starts, in pixels.
    """
    reader, similarity = pack("demo.reader"), pack("metrics.similarity")
    shown = (frames * 255).round().double() / 255  # as a file keeps them
    reading = reader.read(frames)
    correct = reader.correct(reading, clip.scene)
    return {
        "ssim": similarity.ssim(shown[:-1], shown[1:]).mean().item(),
        "psnr": similarity.psnr(shown[:-1], shown[1:]).mean().item(),
        "fidelity": torch.stack([correct[name] for name in PROMPTS[clip.kind]]).float().mean().item(),
        "motion": (reading.centre - reading.centre[0]).norm(dim=1).max().item(),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and the half width of its 95% interval (Student's t)."""
    from scipy.stats import t

    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * spread


def summarise(figures: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Mean and half width for every way and measure, and of ZS² less the baseline, clip by clip."""
    means = {
        way: {name: interval([clip[name] for clip in clips]) for name in MEASURES} for way, clips in figures.items()
    }
    gain = {
        name: interval([ours[name] - base[name] for ours, base in zip(figures[OURS], figures[BASELINE], strict=True)])
        for name in MEASURES
    }
    return {"means": means, "gain": gain}


def table(kind: str, summary: Mapping[str, Any], count: int, settings: Settings) -> str:
    """The summary as Markdown."""
    lines = [
        f"**{kind}** ({count} clips of {settings.frames} frames, `kl` {settings.kl:g}, `mu` {settings.mu:g})",
        "",
        f"| | {' | '.join(title for title, _ in MEASURES.values())} |",
        "|---" * (1 + len(MEASURES)) + "|",
    ]
    for way, row in {**summary["means"], "gain of ZS², clip by clip": summary["gain"]}.items():
        sign = "+" if row is summary["gain"] else ""
        cells = (
            f"{format(row[name][0], sign + form)} ± {format(row[name][1], form)}"
            for name, (_, form) in MEASURES.items()
        )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def contact_sheet(clips: list[Clip], columns: int = 8) -> Image.Image:
    """The first frames of plain sampling and of ZS² for every clip, one below the other."""
    side, gap, band = 128, 4, 26
    label, block = 90, band + 2 * (side + gap) + 10
    sheet = Image.new("RGB", (label + columns * (side + gap), len(clips) * block), "white")
    pen, small, large = ImageDraw.Draw(sheet), font(14), font(16)
    for number, clip in enumerate(clips):
        top = number * block
        pen.text((gap, top + 4), f"“{clip.prompt}”", fill="#1f2933", font=large)
        for row, (way, name) in enumerate(((BASELINE, "plain\nsampling"), (OURS, "ZS²"))):
            y = top + band + row * (side + gap)
            pen.multiline_text((gap, y + side // 2 - 16), name, fill="#1f2933", font=small)
            for column, frame in enumerate(clip.frames[way][:columns]):
                picture = Image.fromarray((frame * 255).round().byte().numpy().astype(np.uint8))
                sheet.paste(picture, (label + column * (side + gap), y))
    return sheet


def publish(clips: list[Clip], text: str) -> None:
    """Write the contact sheet, and the table between the README's marks."""
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(clips).save(SHEET, quality=88, optimize=True)
    before, rest = README.read_text("utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    README.write_text(f"{before}{MARKS[0]}{text}\n{MARKS[1]}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--clips", type=int, default=12, help="scenes, each with a seed of its own")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--kl", type=float, default=0.02)
    parser.add_argument("--mu", type=float, default=0.98)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first clips here")
    parser.add_argument("--publish", action="store_true", help="write the README's table and contact sheet")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter_comfyui(arguments.comfyui.resolve())
    settings = Settings(arguments.frames, arguments.kl, arguments.mu, arguments.steps)

    figures: dict[str, dict[str, list[dict[str, float]]]] = {kind: {way: [] for way in WAYS} for kind in PROMPTS}
    shown = []
    with torch.inference_mode():
        for clip in draw_clips(arguments.clips, settings):
            for way, frames in clip.frames.items():
                figures[clip.kind][way].append(measure(frames, clip))
            shown += [clip] if len(shown) < SHOWN else []
            print(f"\r{clip.seed + 1}/{arguments.clips}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    summary = {kind: summarise(ways) for kind, ways in figures.items()}
    text = "\n\n".join(table(kind, each, arguments.clips, settings) for kind, each in summary.items())
    print(text)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"settings": vars(settings), "summary": summary, "clips": figures}, indent=1)
        )
    if arguments.sheet:
        contact_sheet(shown).save(arguments.sheet)
    if arguments.publish:
        publish(shown, text)


if __name__ == "__main__":
    main()
