"""What IE-Adapt's guidances do to pictures and clips of the demo model: the paper's Tables 2 and 4 at toy scale.

    python benchmarks/ie_guidance_study.py --comfyui DIR --out FOLDER [--kind image|video] [--scenes 24] [--publish]

Every guidance at every scale, and plain CFG, from the same prompts and noise, through a real ComfyUI server. The layer
is the one of highest entropy, as EntropyRegister finds it for every prompt, at the first step (its default) or, in one
setting, over all of them. Stills are asked for by prompts that say
all of the scene; clips, with dependency noise, by prompts that leave size and place open, so that frames may differ.
With --kind video the demo's video model draws clips from prompts that say how the shape moves, and its
temporal layers, too, may be the one of highest entropy.
What was drawn stays in FOLDER: an interrupted study goes on where it was. Run it with the Python of that ComfyUI.

Measured on every picture, by the reader that the tests check on drawn pictures:
obeys: share of what the prompt says that the picture shows. form: how well the shape covers the drawn one closest to it
(intersection over union). sharpness: slope of the shape's edge, in that of the drawn one. grain: standard deviation in
flat areas, of 255. On clips also ssim: of neighbouring frames. moves: share
of the video model's clips that move as their prompt says.

Intervals are 95% bootstrap intervals over scenes; differences from plain CFG are taken scene by scene.
"""

# ruff: noqa: E402 (the pack needs its name first)

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from studies import PACK
from torch import Tensor

sys.path.append(str(PACK))  # its modules that need no ComfyUI: that one runs in the server
import _enter_pack

_enter_pack.enter()
import ie_guidance_report as report
from coherence.demo.motion import FRAMES, MovingScene, moving_caption, random_moving_scene
from coherence.demo.motion_reader import read_motion
from coherence.demo.reader import correct, read, shape_mask
from coherence.demo.shapes import Scene, caption, coverage, paint, random_scene
from coherence.hosting.provision import Host
from coherence.hosting.server import Server
from coherence.metrics.similarity import ssim
from picture_metrics import edge_slope

Json = dict[str, Any]
SIDE = 128  # pixels


@dataclass(frozen=True)
class Setting:
    """What is drawn for each scene: ``pictures`` of the prompt, or as many frames of a clip."""

    title: str
    steps: int
    sampler: str
    says: tuple[str, ...]
    scales: tuple[float, ...]
    pictures: int
    is_clip: bool = False
    cfg: float = 5.0
    scheduler: str = "karras"
    every: int = 1
    """Of the scenes, how many make one that is drawn."""
    measured: str = "0"
    """At which steps the entropy is taken: at the first, as the node does unless told otherwise, or "all"."""
    guidances: tuple[str, ...] = report.GUIDANCES

    @property
    def ways(self) -> dict[str, tuple[str, float] | None]:
        """Name → guidance and λ; strategies 1 and 4 have no λ."""
        pairs = [(guidance, scale) for guidance in report.PAIRS for scale in self.scales]
        lone = [(guidance, 1.0) for guidance in report.LONE]
        chosen = [each for each in pairs + lone if each[0] in self.guidances]
        return {report.PLAIN: None} | {report.way_name(*each): each for each in chosen}


EVERYTHING = ("colour", "background", "position", "size", "shape")
LOOK = ("colour", "background", "shape")
IMAGE = {
    "usual": Setting("stills, 8 steps", 8, "dpmpp_2m", EVERYTHING, (1.0, 2.0, 4.0), 2),
    "late": Setting(
        "stills, 8 steps, layer by its entropy over all steps", 8, "dpmpp_2m", EVERYTHING, (2.0,), 2, measured="all"
    ),
    "free": Setting("stills, 8 steps, cfg 1.5", 8, "dpmpp_2m", EVERYTHING, (1.0, 2.0, 4.0), 2, cfg=1.5),
    "hasty": Setting("stills, 4 steps", 4, "euler", EVERYTHING, (1.0, 2.0, 4.0), 2),
    "clips": Setting("clips of 6 frames", 8, "dpmpp_2m", LOOK, (2.0,), 6, is_clip=True, every=2),
}
BOTH = {"is_clip": True, "guidances": ("A-I", "U-I")}
VIDEO = {
    "video": Setting("clips, 8 steps", 8, "dpmpp_2m", LOOK, (2.0,), FRAMES, **BOTH),
    "video free": Setting("clips, 8 steps, cfg 1.5", 8, "dpmpp_2m", LOOK, (2.0,), FRAMES, cfg=1.5, **BOTH),
}
SETTINGS = IMAGE | VIDEO
KINDS = {"image": IMAGE, "video": VIDEO}


@dataclass(frozen=True)
class Task:
    """One scene in one setting."""

    name: str
    number: int
    scene: Scene
    motion: str | None = None
    """Of the video model's clips; of so many ``frames``."""
    frames: int = FRAMES

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.name]

    @property
    def pictures(self) -> int:
        return self.frames if self.motion else self.setting.pictures

    @property
    def prompt(self) -> str:
        if self.motion:
            return moving_caption(MovingScene(self.scene, self.motion), random.Random(self.number))
        if self.setting.is_clip:
            return f"a {self.scene.colour} {self.scene.shape} on a {self.scene.background} background"
        return caption(self.scene, random.Random(self.number))

    def strip(self, folder: Path, way: str) -> Path:
        """The file of what was drawn, side by side."""
        return folder / self.name / f"{self.number:02}_{way.replace(' ', '_')}.png"

    def note(self, folder: Path) -> Path:
        """The file that is written when all of them are there."""
        return folder / self.name / f"{self.number:02}.json"


def tasks(kind: str, scenes: int, frames: int, names: list[str]) -> list[Task]:
    """Scene by scene, so that a study that was broken off has all settings of its first ones."""
    rng = random.Random(0)
    drawn = [random_moving_scene(rng) if kind == "video" else MovingScene(random_scene(rng), "") for _ in range(scenes)]
    return [
        Task(name, number, moving.scene, moving.motion or None, frames)
        for number, moving in enumerate(drawn)
        for name, setting in KINDS[kind].items()
        if name in names and number % setting.every == 0
    ]


# Drawing -------------------------------------------------------------------------------------------------------------


def workflow(task: Task) -> tuple[Json, dict[str, str]]:
    """All ways of drawing a scene as one prompt in API format, and the ids of the nodes that save, by way."""
    prompt: Json = {}
    setting = task.setting

    def node(class_type: str, /, **inputs: Any) -> str:
        prompt[name := str(len(prompt) + 1)] = {"class_type": class_type, "inputs": inputs}
        return name

    demo = node("CoherenceDemoModel", kind="video" if task.motion else "image")
    positive, negative = ([node("CLIPTextEncode", clip=[demo, 1], text=text), 0] for text in (task.prompt, ""))
    latent = [node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=task.pictures), 0]
    search = {"divergence": "generalised", "solver": "bisection", "random_candidates": 10, "line_iterations": 15}
    if setting.is_clip and not task.motion:
        noise = [node("DependencyNoise", noise_seed=task.number, kl=0.02, kl_schedule="", **search), 0]
    else:
        noise = [node("RandomNoise", noise_seed=task.number), 0]
    scheduler = {"scheduler": setting.scheduler, "steps": setting.steps, "denoise": 1.0}
    sigmas = [node("BasicScheduler", model=[demo, 0], **scheduler), 0]
    sampler = [node("KSamplerSelect", sampler_name=setting.sampler), 0]
    start = {"noise": noise, "sigmas": sigmas, "latent_image": latent}
    ranking = {"kind": "all", "select": "highest", "count": 1, "percent": 50.0}
    measuring = {"measure_steps": setting.measured, "precision": "exact"}
    register = node("EntropyRegister", model=[demo, 0], conditioning=positive, **start, **ranking, **measuring)
    saved = {"registry": node("SaveAttentionRegistry", registry=[register, 0], filename_prefix="registry")}
    for way, guided in setting.ways.items():
        model = demo
        if guided:
            guidance, scale = guided
            span = {"start_percent": 0.0, "end_percent": 1.0, "rescale": 0.0}
            chosen = {"registry": [register, 0], "guidance": guidance, "scale": scale}
            model = node("IEGuidanceCFG", model=[demo, 0], **chosen, **span)
        guider = node("CFGGuider", model=[model, 0], positive=positive, negative=negative, cfg=setting.cfg)
        sampled = node("SamplerCustomAdvanced", guider=[guider, 0], sampler=sampler, **start)
        decoded = node("VAEDecode", samples=[sampled, 0], vae=[demo, 2])
        saved[way] = node("SaveImage", images=[decoded, 0], filename_prefix="study")
    return prompt, saved


def draw(task: Task, server: Server, folder: Path) -> None:
    prompt, saved = workflow(task)
    entry = server.queue(prompt)
    for way in task.setting.ways:
        files = entry["outputs"][saved[way]]["images"]
        pictures = [np.asarray(Image.open(BytesIO(server.download(file)))) for file in files]
        Image.fromarray(np.concatenate(pictures, axis=1)).save(task.strip(folder, way))
    (file,) = entry["outputs"][saved["registry"]]["registries"]
    layers = json.loads(server.download(file))["sites"]
    chosen = [layer["name"] for layer in layers if layer["selected"]]
    task.note(folder).write_text(json.dumps({"prompt": task.prompt, "layers": chosen}), "utf-8")


def draw_all(todo: list[Task], comfyui: Path, folder: Path, minutes: float) -> list[Task]:
    """Draw what is not there, and begin nothing after ``minutes``; returns what has been drawn."""
    end = time.monotonic() + 60 * minutes
    drawn = {task.name: asdict(task.setting) | {"pictures": task.pictures} for task in todo}
    settings = json.dumps(drawn, indent=1)
    about = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if about.exists() and about.read_text("utf-8") != settings:
        raise SystemExit(f"{folder} holds a study with other settings. Name another folder with --out.")
    about.write_text(settings, "utf-8")
    missing = [task for task in todo if not task.note(folder).exists()]
    if not missing:
        return todo
    with Server(Host(comfyui, Path(sys.executable), is_ours=False)) as server:
        for number, task in enumerate(missing, 1):
            if number > 1 and time.monotonic() > end:
                break
            task.note(folder).parent.mkdir(exist_ok=True)
            draw(task, server, folder)
            print(f"\r{number}/{len(missing)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [task for task in todo if task.note(folder).exists()]


# Measuring -----------------------------------------------------------------------------------------------------------


def pictures_of(strip: Path) -> Tensor:
    """(pictures, 128, 128, 3) in [0, 1]."""
    with Image.open(strip) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.unflatten(1, (-1, SIDE)).movedim(1, 0).float() / 255


def measure(pictures: Tensor, task: Task) -> dict[str, list[float]]:
    """Figures of every picture; ``ssim`` of every two neighbouring frames."""
    reading = read(pictures)
    right = correct(reading, task.scene)
    drawn = torch.cat(
        [
            paint(coverage(scene.shape, radius, *centre[:, None]), "black", "white")
            for scene, radius, centre in zip(reading.scenes, reading.radius.tolist(), reading.centre, strict=True)
        ]
    )
    slope, steepest = edge_slope(pictures, shape_mask(pictures)), edge_slope(drawn, shape_mask(drawn))
    figures = {
        "obeys": torch.stack([right[name] for name in task.setting.says]).float().mean(0),
        "form": reading.confidence,
        "sharpness": (slope / steepest).nan_to_num(0.0, posinf=0.0),
        "grain": reading.grain,
    }
    if task.setting.is_clip:
        figures["ssim"] = ssim(pictures[1:], pictures[:-1])
    if task.motion:
        figures["moves"] = torch.tensor([float(read_motion(pictures).motion == task.motion)])
    return {name: values.tolist() for name, values in figures.items()}


def measure_all(done: list[Task], folder: Path) -> Iterator[Json]:
    for task in done:
        note = json.loads(task.note(folder).read_text("utf-8"))
        ways = {way: measure(pictures_of(task.strip(folder, way)), task) for way in task.setting.ways}
        yield {"setting": task.name, "scene": task.number, **note, "ways": ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is drawn, figures, charts")
    parser.add_argument("--kind", choices=list(KINDS), default="image", help="which of the demo models")
    parser.add_argument("--scenes", type=int, default=24, help="prompts; every second one as a clip, too")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of the video model's clips; it learned from 16")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="which of them")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="draw no scene after so many")
    parser.add_argument("--publish", action="store_true", help="write the documentation's table and pictures")
    arguments = parser.parse_args()
    kind = arguments.kind
    todo = tasks(kind, arguments.scenes, arguments.frames, arguments.settings)
    todo = draw_all(todo, arguments.comfyui.resolve(), arguments.out, arguments.minutes)
    records = list(measure_all(todo, arguments.out))
    titles = {task.name: task.setting.title for task in todo}
    (arguments.out / "figures.json").write_text(json.dumps(records), "utf-8")
    shown = [task for task in todo if task.name == next(iter(titles))][:4]
    columns, pick = report.short(shown[0].setting.ways), -1 if kind == "video" else 0
    sheet = report.contact_sheet(
        {task.prompt: {way: pictures_of(task.strip(arguments.out, way))[pick] for way in columns} for task in shown}
    )
    name = report.NAME + "_video" * (kind == "video")
    print(report.write(name, records, titles, sheet, arguments.out, arguments.publish))


if __name__ == "__main__":
    main()
