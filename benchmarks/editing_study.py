"""IE-Adapt's tables 3 and 5 at toy scale: which layers to replace, and what of them, when a clip is edited.

    python benchmarks/editing_study.py --comfyui DIR [--kind video] [--clips 12] [--frames 4] [--json FILE] [--publish]

Two kinds of clips. *Rendered*: shapes that slide, turn and grow, which the demo model has never seen (it learned from
single upright pictures), inverted with plain DDIM inversion, so that the source is a real clip. *Generated*: drawn by
the model from dependency noise, so that its frames differ. Each clip is edited once: another colour, another shape, or
both. Prompts name size and place, as the model lays a picture out anew where they are left open.

With ``--kind video`` the demo's video model draws the clips, from independent noise and prompts that say how the shape
moves; its temporal layers are ranked beside the others. ``--publish`` writes chart, contact sheet and table. Run it
with the Python of that ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from editing_report import KINDS, MEASURES, SHOWN, summarise, table, write
from studies import PICTURES, enter_comfyui, pack
from torch import Tensor

STEPS, CFG, KL = {"image": 16, "video": 8}, 3.0, 0.05
CHANGES = (("colour",), ("shape",), ("colour", "shape"))
TEMPLATE = "a {size} {colour} {shape} {where}, {background} background"
RANKINGS = {f"lowest {percent}%": ("lowest", percent) for percent in (25, 50, 65, 75, 100)}
RANKINGS["highest 50%"] = ("highest", 50)
HALF = "lowest 50%"
ON_VIDEO = ("lowest 50%", "lowest 75%")


@dataclass(frozen=True)
class Clip:
    """A clip to be edited: ``frames`` (F, 128, 128, 3) and the shape's ``mask`` (F, 128, 128) as they are."""

    kind: str
    seed: int
    source: Any
    target: Any
    prompts: tuple[str, str]
    noise: Any
    latent: dict[str, Tensor]
    source_cfg: float
    frames: Tensor | None = None
    mask: Tensor | None = None
    motion: str | None = None
    """Of the video model's clips."""


class Bench:
    """The demo model, of ``kind`` image or video, and all that an edit needs of the pack."""

    def __init__(self, kind: str, frames: int) -> None:
        import comfy.samplers

        loader, self.is_video = pack("demo.model"), kind == "video"
        self.model = loader.load_video_model() if self.is_video else loader.load_model()
        self.text = loader.load_clip(loader.VIDEO_TEXT_ENCODER_FILE if self.is_video else loader.TEXT_ENCODER_FILE)
        self.vae = loader.load_vae()
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", STEPS[kind])
        self.sampler = comfy.samplers.sampler_object("euler")
        self.frames = frames

    def encode(self, prompt: str) -> list:
        return self.text.encode_from_tokens_scheduled(self.text.tokenize(prompt))

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).float().cpu().clamp(0, 1)

    def render(self, scene: Any, rng: random.Random, seed: int) -> tuple[Any, Any]:
        """The scene's shape in motion, and the scene with the size and place that its middle frame shows."""
        clips = pack("demo.clips")
        motion = rng.choice(clips.MOTIONS)
        rendered = clips.render_clip(scene.shape, scene.colour, scene.background, motion, self.frames, seed)
        seen = pack("demo.reader").read(rendered.frames[self.frames // 2][None]).scenes[0]
        return rendered, replace(scene, size=seen.size, row=seen.row, column=seen.column)

    def clip(self, kind: str, seed: int) -> Clip:
        from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise

        shapes, rng = pack("demo.shapes"), random.Random(seed)
        rendered = moving = None
        if self.is_video:
            moving = pack("demo.motion").random_moving_scene(rng)
        scene = moving.scene if moving else shapes.random_scene(rng)
        if kind == "rendered":
            rendered, scene = self.render(scene, rng, seed)
        taken = {"colour": {scene.colour, scene.background}, "shape": {scene.shape}}
        if moving and moving.motion == "spinning":
            taken["shape"].add("circle")
        free = {
            "colour": sorted(set(shapes.COLOURS) - taken["colour"]),
            "shape": sorted(set(shapes.SHAPES) - taken["shape"]),
        }
        target = replace(scene, **{what: rng.choice(free[what]) for what in CHANGES[seed % len(CHANGES)]})
        template = TEMPLATE + (f", {moving.motion}" if moving else "")
        prompts = tuple(shapes.fill(template, each, random.Random(0)) for each in (scene, target))
        about = (kind, seed, scene, target, prompts)
        empty = {"samples": torch.zeros(self.frames, 4, 16, 16)}
        if moving:
            return Clip(*about, Noise_RandomNoise(seed), empty, CFG, motion=moving.motion)
        if rendered is None:
            (noise,) = (
                pack("nodes.noise").DependencyNoise.execute(seed, KL, "", "generalised", "bisection", 10, 15).args
            )
            return Clip(*about, noise, empty, CFG)
        inversion = pack("samplers.inversion")
        inverted, _ = inversion.invert_latent(
            self.model,
            self.encode(prompts[0]),
            None,
            1.0,
            {"samples": self.vae.encode(rendered.frames)},
            self.sigmas,
            inversion.Inversion(mode="none", refine_iterations=2),
            0,
            "study",
        )
        noise = Noise_EmptyNoise()
        return Clip(*about, noise, {"samples": inverted}, 1.0, rendered.frames, rendered.mask > 0.5)

    def ways(self, clip: Clip) -> Iterator[tuple[str, dict[str, str]]]:
        """Name, and which layers and what of them are replaced."""
        register, measure = pack("attention.registry"), pack("samplers.measure")
        start = measure.Start(self.encode(clip.prompts[0]), clip.noise, self.sigmas, clip.latent)
        sites, figures = measure.measure_layers(self.model, start, (0,), "exact", "study")
        measured = register.Measurement((0,), (self.sigmas[0].item(),), "exact", clip.seed, (1,))
        yield "nothing", {"layers": ""}
        layers = {}
        for name in ON_VIDEO if self.is_video else RANKINGS:
            order, percent = RANKINGS[name]
            ranking = register.Ranking("all", order, 0, percent)
            layers[name] = register.ranked_registry("", "", sites, figures, ranking, measured).selector
            yield name, {"layers": layers[name]}
        if self.is_video:
            return
        eligible = [site.name for site in sites if site.kind in register.SELECTABLE]
        yield "random 50%", {"layers": ", ".join(random.Random(clip.seed).sample(eligible, len(eligible) // 2))}
        for what in ("key_value", "value"):
            yield f"{what}, {HALF}", {"layers": layers[HALF], "replace": what}
        yield "cross_map", {"layers": "", "replace": "cross_map"}

    def edit(self, clip: Clip, way: dict[str, str]) -> tuple[Tensor, Tensor]:
        """Frames of target and source."""
        editing = pack("samplers.editing")
        prompts = editing.Prompts(*map(self.encode, (*clip.prompts, "")))
        edit = editing.Edit(cfg=CFG, source_cfg=clip.source_cfg, **way)
        run = (clip.noise, self.sampler, self.sigmas, clip.latent)
        target, source = editing.sample_edit(self.model, prompts, edit, *run, "study")
        return self.decode(target), self.decode(source)


def measure(frames: Tensor, clip: Clip) -> dict[str, float]:
    """Figures of an edited clip (F, 128, 128, 3); ``clip`` has frames and mask."""
    reader, similarity = pack("demo.reader"), pack("metrics.similarity")
    correct = reader.correct(reader.read(frames), clip.target)
    mask = reader.shape_mask(frames)
    figures = {
        "fidelity": torch.stack([correct[name] for name in ("colour", "shape", "background")]).float().mean().item(),
        "iou": similarity.iou(mask, clip.mask).mean().item(),
        "background": similarity.psnr(frames, clip.frames, ~(mask | clip.mask)).nanmean().item(),
        "consistency": similarity.ssim(frames[1:], frames[:-1]).mean().item(),
    }
    if clip.motion:
        figures["moves"] = float(pack("demo.motion_reader").read_motion(frames).motion == clip.motion)
    return figures


def study(bench: Bench, count: int, minutes: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A record for every clip that was begun within ``minutes``, and the frames of the first ``SHOWN`` of each kind."""
    records, pictures, end = [], [], time.monotonic() + 60 * minutes
    for kind in ["generated"] if bench.is_video else KINDS:
        for seed in range(count):
            if records and time.monotonic() > end:
                break
            clip = bench.clip(kind, seed)
            ways, frames, layers = {}, {}, {}
            for name, way in bench.ways(clip):
                edited, source = bench.edit(clip, way)
                if clip.frames is None:  # the model has just drawn it
                    clip = replace(clip, frames=source, mask=pack("demo.reader").shape_mask(source))
                ways[name], frames[name], layers[name] = measure(edited, clip), edited, way["layers"]
            records.append({"kind": kind, "prompts": clip.prompts, "seed": seed, "ways": ways, "layers": layers})
            if seed < SHOWN:
                pictures.append({"prompts": clip.prompts, "frames": {"source": clip.frames, **frames}})
            print(f"\r{kind} {seed + 1}/{count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return records, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--kind", choices=list(STEPS), default="image", help="which of the demo models")
    parser.add_argument("--clips", type=int, default=12, help="clips of each kind")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no clip after so many")
    parser.add_argument("--frames", type=int, default=4, help="the video model learned from clips of 16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--out", type=Path, help="write chart, contact sheet and table to this folder")
    parser.add_argument("--publish", action="store_true", help="write chart, contact sheet and table to web/docs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter_comfyui(arguments.comfyui.resolve())
    with torch.inference_mode():
        records, pictures = study(Bench(arguments.kind, arguments.frames), arguments.clips, arguments.minutes)
    summary = summarise(records)
    for ways in summary.values():
        print(f"\n{table(ways)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"measures": MEASURES, "records": records}, indent=1))
    name = "editing_study" + "_video" * (arguments.kind == "video")
    for folder in [arguments.out] * bool(arguments.out) + [PICTURES] * arguments.publish:
        write(folder, name, summary, pictures, records)


if __name__ == "__main__":
    main()
