"""ZS²'s claims at toy scale: its noise and its attention beside the others', over 16 frames of the demo model.

    python benchmarks/zs2_study.py --comfyui DIR --out FOLDER [--scenes 24] [--minutes N] [--publish]

Which ways of drawing a clip: :mod:`zs2_design`. Every way gets the same prompts and seeds. Of two scenes one is asked
for by a prompt that says all of it, the other by one that leaves size and place open, so that plain sampling decides
anew at every frame. All noises begin with the same frame, and so do the clips of all ways. What was drawn stays in
FOLDER: an interrupted study goes on where it was. Run it with the Python of that ComfyUI.

Measured on every frame, by the reader that the tests check on drawn pictures:
obeys: share of what the prompt says that the frame shows. form: how well the shape covers the drawn one closest to it
(intersection over union). grain: standard deviation in flat areas, of 255. *Change* of one of them: the last quarter's
mean less the first's. On neighbouring frames SSIM and PSNR. travel: how far the shape's centre gets from where it
starts; step: how far it goes from a frame to the next; both in pixels. And, of sampling steps that take turns, the
processor time relative to that with plain self-attention.

Intervals are 95% bootstrap intervals over scenes; differences are taken scene by scene.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
import torch
import zs2_report as report
from PIL import Image
from studies import enter_comfyui, pack
from torch import Tensor
from zs2_design import ATTENTIONS, MU, PARTS, Way
from zs2_report import FULL, OPEN, PROMPTS

Json = dict[str, Any]
SIDE, FRAMES = 128, 16
SETTINGS = {"frames": FRAMES, "steps": 8, "cfg": 5.0, "sampler": "dpmpp_2m", "scheduler": "karras"}
TIMED = ((8, 128), (16, 128), (8, 256))
"""Frames, and pixels of height and width, of the clips whose time is taken."""


class Scene:
    """A scene, how it is asked for, and the seed of its clips."""

    def __init__(self, number: int) -> None:
        shapes, rng = pack("demo.shapes"), random.Random(number)
        self.number, self.kind, self.shown = number, (FULL, OPEN)[number % 2], shapes.random_scene(rng)
        self.prompt = shapes.caption(self.shown, rng)
        if self.kind == OPEN:
            self.prompt = f"a {self.shown.colour} {self.shown.shape} on a {self.shown.background} background"

    def strip(self, folder: Path, way: Way) -> Path:
        """The file of the frames, side by side."""
        return folder / way.name.replace(", ", "_").replace(" ", "_") / f"{self.number:02}.png"


class Bench:
    """The demo model, plain and with every attention, and the noises."""

    def __init__(self) -> None:
        loader = pack("demo.model")
        self.model, self.text, self.vae = loader.load_model(), loader.load_clip(), loader.load_vae()
        self.latent = {"samples": torch.zeros(FRAMES, 4, SIDE // 8, SIDE // 8)}

    def encode(self, prompt: str) -> list:
        return self.text.encode_from_tokens_scheduled(self.text.tokenize(prompt))

    def model_of(self, attention: str, mu: float) -> Any:
        if attention == "self":
            return self.model
        if attention == "momentum":
            (model,) = pack("nodes.momentum").TemporalMomentumAttention.execute(self.model, mu).args
        else:
            (model,) = pack("nodes.cross_frame").CrossFrameAttention.execute(self.model, attention).args
        return model

    def noise_of(self, way: Way, seed: int) -> Tensor:
        nodes = pack("nodes.noise")
        if way.noise == "dependency":
            search = ("generalised", "bisection", 10, 15)
            (noise,) = nodes.DependencyNoise.execute(seed, way.strength, "", *search).args
        else:
            (noise,) = nodes.VideoNoisePrior.execute(seed, way.noise, way.strength).args
        return noise.generate_noise(self.latent)

    def draw(self, scene: Scene, way: Way) -> Tensor:
        """(FRAMES, 128, 128, 3) in [0, 1]."""
        import comfy.sample

        latents = comfy.sample.sample(
            self.model_of(way.attention, way.mu),
            self.noise_of(way, scene.number),
            SETTINGS["steps"],
            SETTINGS["cfg"],
            SETTINGS["sampler"],
            SETTINGS["scheduler"],
            self.encode(scene.prompt),
            self.encode(""),
            self.latent["samples"],
            disable_pbar=True,
            seed=scene.number,
        )
        frames = [self.vae.decode(latent) for latent in latents.split(1)]  # on CPUs faster than all at once
        return torch.cat(frames).float().cpu().clamp(0, 1)


# Drawing and measuring -----------------------------------------------------------------------------------------------


def frames_of(strip: Path) -> Tensor:
    """(frames, 128, 128, 3) in [0, 1]."""
    with Image.open(strip) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.unflatten(1, (-1, SIDE)).movedim(1, 0).float() / 255


def save(frames: Tensor, strip: Path) -> None:
    """Whole or not at all."""
    strip.parent.mkdir(parents=True, exist_ok=True)
    unfinished = strip.with_suffix(".part")
    pixels = (frames.movedim(0, 1).flatten(1, 2) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(unfinished, format="PNG")
    unfinished.replace(strip)


def measure(frames: Tensor, scene: Scene) -> dict[str, list]:
    """Figures of every frame, or of every two neighbouring ones; ``centre``: x and y."""
    reader, similarity = pack("demo.reader"), pack("metrics.similarity")
    reading = reader.read(frames)
    correct = reader.correct(reading, scene.shown)
    figures = {
        "obeys": torch.stack([correct[name] for name in PROMPTS[scene.kind]]).float().mean(0),
        "form": reading.confidence,
        "grain": reading.grain,
        "centre": reading.centre,
        "ssim": similarity.ssim(frames[:-1], frames[1:]),
        "psnr": similarity.psnr(frames[:-1], frames[1:]),
    }
    return {name: values.tolist() for name, values in figures.items()}


def records(scenes: list[Scene], folder: Path, is_closed: bool, minutes: float = float("inf")) -> Iterator[Json]:
    """One for every scene and way; what is not there yet is drawn, measured and kept, or left out if ``is_closed`` or
    after ``minutes``."""
    end = monotonic() + 60 * minutes
    kept, wanted = folder / "records.jsonl", [(scene, way) for ways in PARTS for scene in scenes for way in ways]
    done: dict[tuple[int, str], Json] = {}
    if kept.exists():
        lines = kept.read_text("utf-8").splitlines(keepends=True)
        lines = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
        if not is_closed:
            kept.write_text("".join(lines), "utf-8")
        done = {(record["scene"], record["way"]): record for record in map(json.loads, lines)}
    bench = None
    with kept.open("r" if is_closed else "a", encoding="utf-8") as file:
        for number, (scene, way) in enumerate(wanted, 1):
            if (scene.number, way.name) not in done:
                if is_closed or monotonic() > end:
                    continue
                strip = scene.strip(folder, way)
                if not strip.exists():
                    bench = bench or Bench()
                    save(bench.draw(scene, way), strip)
                figures = measure(frames_of(strip), scene)
                about = {"scene": scene.number, "kind": scene.kind, "prompt": scene.prompt, "way": way.name}
                done[scene.number, way.name] = about | figures
                file.write(json.dumps(about | figures) + "\n")
                file.flush()
                print(f"\r{number}/{len(wanted)}", end="", file=sys.stderr, flush=True)
            yield done[scene.number, way.name]
    print(file=sys.stderr)


# Cost ----------------------------------------------------------------------------------------------------------------


def cost(rounds: int, kept: Path) -> Json:
    """Processor seconds of one thread for two sampling steps; of each length and size and each attention one a round.

    In a round the attentions take turns, beginning with another one each time, so that what else the machine does
    falls on all of them. ``kept``: the file that has what was timed before, and gets the rest.
    """
    taken: Json = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    missing = [(frames, size) for frames, size in TIMED if _clip(frames, size) not in taken]
    if not rounds or not missing:
        return taken
    from long_clip import sampling

    bench, threads = Bench(), torch.get_num_threads()
    torch.set_num_threads(1)
    for frames, size in missing:
        runs: dict[str, Callable[[], None]] = {
            name: sampling(bench.model_of(attention, MU), frames, size) for attention, name in ATTENTIONS.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            names = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
            for name in names:
                start = process_time()
                runs[name]()
                if turn:  # the first one warms up
                    times[name].append(process_time() - start)
            print(f"\rcost {turn}/{rounds}", end="", file=sys.stderr, flush=True)
        taken[_clip(frames, size)] = times
        kept.write_text(json.dumps(taken), "utf-8")
    print(file=sys.stderr)
    torch.set_num_threads(threads)
    return taken


def _clip(frames: int, size: int) -> str:
    return f"{frames} frames, {size} px"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is drawn, figures, charts")
    parser.add_argument("--scenes", type=int, default=24, help="prompts, each with a seed; 0: only take the time")
    parser.add_argument("--rounds", type=int, default=20, help="of taking the time; 0: leave that out")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="draw no clip after so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--report", action="store_true", help="draw nothing more: report on what there is")
    parser.add_argument("--publish", action="store_true", help="write the documentation's tables and pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter_comfyui(arguments.comfyui.resolve())
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True  # as on GPUs; ComfyUI's own for CPUs cuts its work to the memory free
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    about, settings = folder / "settings.json", json.dumps(SETTINGS)
    if about.exists() and about.read_text("utf-8") != settings:
        raise SystemExit(f"{folder} holds a study with other settings. Name another folder with --out.")
    about.write_text(settings, "utf-8")
    with torch.inference_mode():
        taken = cost(0 if arguments.report else arguments.rounds, folder / "cost.json")
        if not arguments.scenes:
            print(report.costs(taken))
            return
        scenes = [Scene(number) for number in range(arguments.scenes)]
        done = list(records(scenes, folder, arguments.report, arguments.minutes))
    shown = scenes[:2]
    ways = [way for way in report.ON_SHEET if all(scene.strip(folder, way).exists() for scene in shown)]
    sheet = report.contact_sheet(
        {scene.prompt: {way.name: frames_of(scene.strip(folder, way)) for way in ways} for scene in shown}
    )
    print(report.write(done, taken, sheet, folder, arguments.publish))


if __name__ == "__main__":
    main()
