"""One-shot tuning, then editing, at toy scale: is EI²'s STAM better than Tune-A-Video, and either than nothing?

    python benchmarks/ei2_study.py --comfyui DIR --out FOLDER [--clips 8] [--steps 60] [--rate 1e-3] [--publish]

The demo model, which draws pictures, is tuned on one rendered clip of a shape that slides, turns or grows. The clip is
inverted (DDIM, no filter, refined) on the tuned model, and drawn again from that noise with another colour, another
shape and another background, each alone. Prompts leave size and place open: where things are, and how they move, has to
come from the noise and from what was tuned. The renderer draws the ideal edit, too: the new scene in the same motion.

Ways: *untuned*, the plain model; *untuned, fine-coarse*, with EI²'s frame attention and nothing tuned; *Tune-A-Video*;
*STAM*, with fine-coarse frame attention; *STAM, cross_map*, with the source's cross-attention maps (Prompt-to-Prompt).

Measured: the share of colour, shape and background that is as asked, and of what was to change alone; how far the
shape's centre is from the ideal's, and how much the shapes overlap (IoU); the SSIM to the ideal; the error between
neighbouring frames, warped along their own motion; and the share of neighbours that show the same three attributes.
95% bootstrap intervals over clips. FOLDER keeps what was tuned and drawn: an interrupted study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import ei2_report as report
import numpy as np
import torch
from ei2_bench import CHANGES, Bench, Budget, Clip, Target, remember
from PIL import Image
from studies import pack
from torch import Tensor

NAME = "ei2_study"
STEPS, CFG, REFINED = 12, 3.0, 1
SCHEDULER, SAMPLER = "karras", "euler"
WAYS = ("untuned", "untuned, fine-coarse", "Tune-A-Video", "STAM", "STAM, cross_map")


class Editor:
    """Inverts and edits."""

    def __init__(self, bench: Bench) -> None:
        import comfy.samplers

        self.bench = bench
        sampling = bench.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, STEPS)
        self.sampler = comfy.samplers.sampler_object(SAMPLER)
        self._inverted: dict[str, Tensor] = {}

    def model(self, way: str, clip: Clip) -> Any:
        if way == "untuned":
            return self.bench.model
        if way == "untuned, fine-coarse":
            return self.bench.inflated("STAM", None)
        form = way.split(",")[0]
        return self.bench.inflated(form, self.bench.tuned(form, clip))

    def draw(self, way: str, clip: Clip, targets: list[Target]) -> Iterator[Tensor]:
        """The frames of every edit, (F, 128, 128, 3)."""
        inversion, model, encode = pack("samplers.inversion"), self.model(way, clip), self.bench.encode
        how = inversion.Inversion(mode="none", refine_iterations=REFINED)
        asked = (model, encode(clip.prompt), None, 1.0, clip.latent, self.sigmas, how, 0, "study")
        if (tuned := way.split(",")[0] if "untuned" not in way else way) not in self._inverted:
            self._inverted = {tuned: inversion.invert_latent(*asked)[0]}
        start = self._inverted[tuned]
        for target in targets:
            draw = self._with_maps if "cross_map" in way else self._plainly
            yield self.bench.decode(draw(model, start, clip, target))

    def _plainly(self, model: Any, start: Tensor, _clip: Clip, target: Target) -> Tensor:
        from comfy.samplers import CFGGuider

        guider = CFGGuider(model)
        guider.set_conds(self.bench.encode(target.prompt), self.bench.encode(""))
        guider.set_cfg(CFG)
        return guider.sample(start * 0, start, self.sampler, self.sigmas, disable_pbar=True, seed=0)

    def _with_maps(self, model: Any, start: Tensor, clip: Clip, target: Target) -> Tensor:
        from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

        editing = pack("samplers.editing")
        prompts = editing.Prompts(*map(self.bench.encode, (clip.prompt, target.prompt, "")))
        edit = editing.Edit(layers="", replace="cross_map", cfg=CFG, source_cfg=1.0)
        run = (Noise_EmptyNoise(), self.sampler, self.sigmas, {"samples": start})
        return editing.sample_edit(model, prompts, edit, *run, "study")[0]

    def forget(self) -> None:
        """Before another clip."""
        self._inverted = {}


def strip_path(folder: Path, clip: int, way: str, change: str) -> Path:
    return folder / f"{clip:02} {way} {change}.png"


def save_strip(frames: Tensor, path: Path) -> None:
    """The frames side by side."""
    pixels = (frames * 255).round().byte().numpy().astype(np.uint8)
    Image.fromarray(np.concatenate([*pixels], axis=1)).save(path)


def read_strip(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.unflatten(1, (-1, pixels.shape[0])).movedim(1, 0).float() / 255


def draw_all(bench: Bench, clips: int, folder: Path, minutes: float) -> int:
    """Draw what is not there, and begin no clip after ``minutes``; returns how many clips are there."""
    editor, end = Editor(bench), time.monotonic() + 60 * minutes
    for number in range(clips):
        if number and time.monotonic() > end:
            return number
        missing = [
            way for way in WAYS if not all(strip_path(folder, number, way, change).exists() for change in CHANGES)
        ]
        if not missing:
            continue
        clip = bench.clip(number)
        targets = bench.targets(clip)
        for way in missing:
            for target, frames in zip(targets, editor.draw(way, clip, targets), strict=True):
                save_strip(frames, strip_path(folder, number, way, target.change))
            print(f"clip {number + 1} of {clips}, {way}: drawn", file=sys.stderr, flush=True)
        editor.forget()
    return clips


def measure(frames: Tensor, target: Target) -> dict[str, float]:
    """Figures of an edited clip (F, 128, 128, 3)."""
    reader, similarity = pack("demo.reader"), pack("metrics.similarity")
    reading, ideal = reader.read(frames), target.ideal
    right = reader.correct(reading, target.scene)
    shown = [tuple(getattr(scene, name) for name in CHANGES) for scene in reading.scenes]
    consistency = pack("metrics.consistency").temporal_consistency(frames)
    return {
        "obeys": torch.stack([right[name] for name in CHANGES]).float().mean().item(),
        "change": right[target.change].float().mean().item(),
        "track": (reading.centre - ideal.centre).norm(dim=-1).mean().item(),
        "iou": similarity.iou(reader.shape_mask(frames), ideal.mask > 0.5).mean().item(),
        "ssim": similarity.ssim(frames, ideal.frames).mean().item(),
        "warped": 1000 * consistency.warped_error.nanmean().item(),
        "steady": sum(a == b for a, b in pairwise(shown)) / (len(shown) - 1),
    }


def measure_all(bench: Bench, clips: int, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A record for every clip, way → change → figures, and the frames that go on the contact sheet."""
    records, sheet = [], []
    for number in range(clips):
        clip = bench.clip(number)
        targets = bench.targets(clip)
        drawn = {
            way: {each.change: read_strip(strip_path(folder, number, way, each.change)) for each in targets}
            for way in WAYS
        } | {report.IDEAL: {each.change: each.ideal.frames for each in targets}}
        ways = {
            way: {each.change: measure(frames[each.change], each) for each in targets} for way, frames in drawn.items()
        }
        records.append({"clip": number, "motion": clip.motion, "prompt": clip.prompt, "ways": ways})
        if number < report.SHOWN:
            shown = targets[number % len(targets)]
            frames = {"source": clip.frames} | {way: each[shown.change] for way, each in drawn.items()}
            sheet.append({"prompts": (clip.prompt, shown.prompt), "frames": frames})
    return records, sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is tuned and drawn")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of tuning")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no clip after so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--publish", action="store_true", help="write chart, contact sheet and tables to web/docs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.comfyui, arguments.out, Budget(arguments.steps, arguments.rate, arguments.frames))
    folder = arguments.out / NAME
    remember(folder / "settings.json", {"steps": STEPS, "cfg": CFG, "refined": REFINED, "scheduler": SCHEDULER})
    with torch.inference_mode():
        clips = draw_all(bench, arguments.clips, folder, arguments.minutes)
        records, sheet = measure_all(bench, clips, folder)
    (folder / "figures.json").write_text(json.dumps(records, indent=1), "utf-8")
    print(report.write(records, sheet, folder, arguments.publish))


if __name__ == "__main__":
    main()
