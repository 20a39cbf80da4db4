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

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, Estimate, Use, estimate, shown
from figures import MUTED, bold, legend, line, panels, publish, sheet, style, table
from harness import SIDE, Json, command_line, open_prompt, pack, remember, save, strip, within
from ie_guidance_design import (
    GUIDANCES,
    KINDS,
    LONE,
    MEASURES,
    MOTION_OF,
    PLAIN,
    QUALITIES,
    SETTINGS,
    VIDEO,
    VIDEO_FRAMES,
    Setting,
    way_name,
)
from picture_metrics import edge_slope
from PIL import Image
from power import worth
from torch import Tensor

NAME = "ie_guidance_study"
USES = {
    (f"[{' − '.join(pair)}] improves the quality of the picture over plain CFG", "form"): Use(
        *("outlines that are more exact", f"IEGuidanceCFG, {'-'.join(pair)}", "scale 2, the layer of highest entropy"),
        cost,
    )
    for pair, cost in (("AI", "[A − I] at middle.0"), ("UI", "[U − I] at middle.0"))
}
"""By claim and measure."""


@dataclass(frozen=True)
class Task:
    """One scene in one setting."""

    name: str
    number: int
    scene: Any
    motion: str | None = None
    """Of the video model's clips; of so many ``frames``."""
    frames: int = VIDEO_FRAMES

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.name]

    @property
    def pictures(self) -> int:
        return self.frames if self.motion else self.setting.pictures

    @property
    def prompt(self) -> str:
        if self.motion:
            motion = pack("demo.motion")
            return motion.moving_caption(motion.MovingScene(self.scene, self.motion), random.Random(self.number))
        if self.setting.is_clip:
            return open_prompt(self.scene)
        return pack("demo.shapes").caption(self.scene, random.Random(self.number))

    def strip(self, folder: Path, way: str) -> Path:
        """The file of what was drawn, side by side."""
        return folder / self.name / f"{self.number:02}_{way.replace(' ', '_')}.png"

    def note(self, folder: Path) -> Path:
        """The file that is written when all of them are there."""
        return folder / self.name / f"{self.number:02}.json"


def tasks(kind: str, scenes: int, frames: int, names: list[str]) -> list[Task]:
    """Scene by scene, so that a study that was broken off has all settings of its first ones."""
    rng, motion, shapes = random.Random(0), pack("demo.motion"), pack("demo.shapes")
    drawn = [
        motion.random_moving_scene(rng) if kind == "video" else motion.MovingScene(shapes.random_scene(rng), "")
        for _ in range(scenes)
    ]
    return [
        Task(name, number, moving.scene, MOTION_OF.get(name, moving.motion) or None, frames)
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

    demo = node("CoherenceDemoModel", kind="shapes_video" if task.motion else "shapes")
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


def draw(task: Task, server: Any, folder: Path) -> None:
    prompt, saved = workflow(task)
    entry = server.queue(prompt)
    for way in task.setting.ways:
        files = entry["outputs"][saved[way]]["images"]
        pictures = [np.asarray(Image.open(BytesIO(server.download(file)))) for file in files]
        strip(task.strip(folder, way), lambda pictures=pictures: torch.from_numpy(np.stack(pictures)) / 255)
    (file,) = entry["outputs"][saved["registry"]]["registries"]
    layers = json.loads(server.download(file))["sites"]
    chosen = [layer["name"] for layer in layers if layer["selected"]]
    task.note(folder).write_text(json.dumps({"prompt": task.prompt, "layers": chosen}), "utf-8")


def draw_all(todo: list[Task], comfyui: Path, folder: Path, minutes: float) -> list[Task]:
    """Draw what is not there, and begin nothing after ``minutes``; returns what has been drawn."""
    remember(folder / "settings.json", {task.name: asdict(task.setting) | {"pictures": task.pictures} for task in todo})
    missing = [task for task in todo if not task.note(folder).exists()]
    if not missing:
        return todo
    host = pack("hosting.provision").Host(comfyui, Path(sys.executable), is_ours=False)
    with pack("hosting.server").Server(host) as server:
        for task in within(minutes, missing):
            draw(task, server, folder)
            print(f"{task.name} {task.number:02}", file=sys.stderr, flush=True)
    return [task for task in todo if task.note(folder).exists()]


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(pictures: Tensor, task: Task) -> dict[str, list[float]]:
    """Figures of every picture; ``ssim`` of every two neighbouring frames."""
    reader, shapes = pack("demo.reader"), pack("demo.shapes")
    reading = reader.read(pictures)
    right = reader.correct(reading, task.scene)
    drawn = torch.cat(
        [
            shapes.paint(shapes.coverage(scene.shape, radius, *centre[:, None]), "black", "white")
            for scene, radius, centre in zip(reading.scenes, reading.radius.tolist(), reading.centre, strict=True)
        ]
    )
    slope, steepest = (edge_slope(each, reader.shape_mask(each)) for each in (pictures, drawn))
    figures = {
        "obeys": torch.stack([right[name] for name in task.setting.says]).float().mean(0),
        "form": reading.confidence,
        "sharpness": (slope / steepest).nan_to_num(0.0, posinf=0.0),
        "grain": reading.grain,
    }
    if task.setting.is_clip:
        figures["ssim"] = pack("metrics.similarity").ssim(pictures[1:], pictures[:-1])
    if task.motion:
        figures["moves"] = torch.tensor([float(pack("demo.motion_reader").read_motion(pictures).motion == task.motion)])
    return {name: values.tolist() for name, values in figures.items()}


def measure_all(done: list[Task], folder: Path) -> Iterator[Json]:
    for task in done:
        note = json.loads(task.note(folder).read_text("utf-8"))
        ways = {way: measure(strip(task.strip(folder, way)), task) for way in task.setting.ways}
        yield {"setting": task.name, "scene": task.number, **note, "ways": ways}


# Telling -------------------------------------------------------------------------------------------------------------


def gain(records: list[Json], way: str, other: str, name: str) -> Tensor:
    """Prompt by prompt, (prompts, pictures)."""
    rows = (
        torch.tensor([record["ways"][each][name] for record in records], dtype=torch.float64) for each in (way, other)
    )
    return next(rows) - next(rows)


def differences(records: list[Json], ways: list[str]) -> str:
    """Means of plain CFG, and of the ways their difference from it; bold where its interval leaves out 0."""
    measures = records[0]["ways"][PLAIN]

    def cell(way: str, name: str) -> str:
        form = MEASURES[name][1]
        if way == PLAIN:
            return shown(estimate(torch.tensor([record["ways"][way][name] for record in records])), form)
        return bold(estimate(gain(records, way, PLAIN, name)), form)

    layers = Counter(", ".join(record["layers"]) for record in records)
    named = ", ".join(f"`{name}` for {count}" for name, count in layers.most_common())
    about = f"{len(records)} prompts, {len(measures['obeys'])} pictures each; layer: {named}"
    header = ["", *(MEASURES[name][0] for name in measures)]
    title = SETTINGS[records[0]["setting"]].title
    return f"**{title}** ({about})\n\n{table(header, [[way, *(cell(way, name) for name in measures)] for way in ways])}"


def short(ways: Any) -> list[str]:
    """Every guidance at λ = 2."""
    return [way for way in ways if "λ" not in way or way.endswith("λ=2")]


def chart(of: dict[str, list[Json]]) -> Any:
    """Differences from plain CFG against λ, a row a setting."""
    measured = {setting: records[0]["ways"][PLAIN] for setting, records in of.items()}
    names = [name for name in MEASURES if any(name in each for each in measured.values())]
    subtitle = "Differences from plain CFG against λ, prompt by prompt, with 95% intervals."
    figure, grid = panels("What guidances do to pictures", subtitle, len(of), len(names), (290, 290))
    for row, (setting, records) in zip(grid, of.items(), strict=True):
        for axes, name in zip(row, names, strict=True):
            if name not in measured[setting]:
                axes.set_axis_off()
                continue
            style(axes, MEASURES[name][0], "λ", SETTINGS[setting].title if axes is row[0] else "", 22)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            for number, guidance in enumerate(GUIDANCES):
                places: dict[float, str] = {0.5: guidance} if guidance in LONE else {}
                places = places or {scale: way_name(guidance, scale) for scale in (1, 2, 4)}
                places = {
                    x * (1 + 0.05 * (number - 2.5)): way for x, way in places.items() if way in records[0]["ways"]
                }
                found: list[Estimate] = [estimate(gain(records, way, PLAIN, name)) for way in places.values()]
                line(axes, list(places), found, number, guidance)
            axes.set_xscale("log")
            axes.set_xticks([0.5, 1, 2, 4], ["no λ", "1", "2", "4"])
            axes.minorticks_off()
            axes.set_xlim(0.4, 5)
    legend(figure, grid[0][0])
    return figure


def claims(records: list[Json]) -> list[Claim]:
    """Stills of the usual setting, and clips where there are any."""
    of = {setting: [r for r in records if r["setting"] == setting] for setting in SETTINGS}

    def claim(where: str, text: str, setting: str, pair: tuple[str, str], name: str, sign: int) -> Claim:
        title, form = MEASURES[name]
        figure = f"{title}, {pair[0]} less {pair[1]}, {SETTINGS[setting].title.split(',')[0]}"
        how = {"unit": "prompts", "worth": worth(name), "use": USES.get((text, name))}
        return Claim.of(where, text, figure, gain(of[setting], *pair, name), "+" + form, sign, **how)

    found = []
    for name, sign in QUALITIES.items() if of["usual"] else ():
        for way in ("A-I", "U-A", "U-I"):
            text = f"[{way.replace('-', ' − ')}] improves the quality of the picture over plain CFG"
            found.append(claim("table 2", text, "usual", (f"{way} λ=2", PLAIN), name, sign))
        for where, text, pair in (
            ("table 2", "[A − I] does so more than [U − I] on average", ("A-I λ=2", "U-I λ=2")),
            ("table 4", "Strategy 3 is better than strategy 2, [A − I]", ("strategy 3 λ=2", "A-I λ=2")),
            ("table 4", "Strategy 4 is better than strategy 2, [A − I]", ("strategy 4", "A-I λ=2")),
            ("table 4", "Strategy 2, [A − I], is better than strategy 1", ("A-I λ=2", "strategy 1")),
        ):
            found.append(claim(where, text, "usual", pair, name, sign))
    for setting in ("clips", *VIDEO):
        text = "IE-Adapt’s clips are more consistent from frame to frame than plain CFG’s"
        found += [claim("table 1", text, setting, ("U-I λ=2", PLAIN), "ssim", 1)] if of[setting] else []
    for setting, (name, sign) in product(MOTION_OF, {**QUALITIES, "moves": 1}.items()):
        for way in SETTINGS[setting].guidances if of[setting] else ():
            text = f"[{way.replace('-', ' − ')}] improves clips that the model draws badly"
            found.append(claim("table 1", text, setting, (f"{way} λ=2", PLAIN), name, sign))
    return found


def main() -> None:
    parser = command_line(
        __doc__,
        "minutes",
        "publish",
        scenes=(24, "prompts; every second one as a clip, too"),
        frames=(VIDEO_FRAMES, "of the video model's clips; it learned from 16"),
    )
    parser.add_argument("--kind", choices=list(KINDS), default="image", help="which of the demo models")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="which of them")
    arguments = parser.parse_args()
    kind, out = arguments.kind, arguments.out
    todo = tasks(kind, arguments.scenes, arguments.frames, arguments.settings)
    todo = draw_all(todo, arguments.comfyui.resolve(), out, arguments.minutes)
    records = list(measure_all(todo, out))
    save(out, records)
    of = {name: [r for r in records if r["setting"] == name] for name in dict.fromkeys(task.name for task in todo)}
    text, brief = (
        "\n\n".join(differences(each, choose(each[0]["ways"])) for each in of.values()) for choose in (list, short)
    )
    columns, pick = short(todo[0].setting.ways), -1 if kind == "video" else 0
    blocks = [
        (f"“{task.prompt}”", {"": [strip(task.strip(out, way))[pick] for way in columns]})
        for task in [task for task in todo if task.name == todo[0].name][:4]
    ]
    name = NAME + "_video" * (kind == "video")
    print(publish(name, out, arguments.publish, text, chart(of), sheet(blocks, columns, side=SIDE), brief))


if __name__ == "__main__":
    main()
