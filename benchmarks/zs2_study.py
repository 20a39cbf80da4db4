"""ZS²'s claims at toy scale: its noise and its attention beside the others', over 16 frames of the demo model.

    python benchmarks/zs2_study.py --comfyui DIR --out FOLDER [--scenes 24] [--minutes N] [--publish]

Which ways of drawing a clip: :mod:`zs2_design`. Every way gets the same prompts and seeds. Of two scenes one is asked
for by a prompt that says all of it, the other by one that leaves size and place open, so that plain sampling decides
anew at every frame. All noises begin with the same frame, and so do the clips of all ways. What was drawn stays in
FOLDER: an interrupted study goes on where it was. Run it with the Python of that ComfyUI.

Measured on every frame, by the reader that the tests check on drawn pictures:
obeys: share of what the prompt says that the frame shows. look: of its shape, colour and background. form: how well the
shape covers the drawn one closest to it (intersection over union). grain: standard deviation in flat areas, of 255.
kept: SSIM with the first frame. *Change* of one of them: the last quarter's mean less the first's. On neighbouring
frames SSIM and PSNR. travel: how far the shape's centre gets from where it starts; step: how far it goes from a frame
to the next; both in pixels. And, of sampling steps that take turns, the processor time relative to that with plain
self-attention.

Differences are taken scene by scene.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, Cost, Use, estimate, shown, units_of
from figures import claims_table, legend, line, means, panels, publish, sheet, style, table
from harness import (
    OPEN,
    SAYS,
    Demo,
    Json,
    Records,
    command_line,
    dependency_noise,
    empty,
    enter,
    guided,
    open_prompt,
    pack,
    sampling,
    strip,
    take_turns,
)
from power import worth
from torch import Tensor
from zs2_design import (
    ASKED,
    ATTENTIONS,
    BY_KL,
    BY_MU,
    CROSS,
    FIELD,
    KL,
    KLS,
    MU,
    MUS,
    NOISES,
    PARTS,
    SWEPT_KL,
    TABLES,
    Asked,
    Way,
)

NAME = "zs2_study"
FRAMES = 16
SETTINGS = {"steps": 8, "cfg": 5.0, "sampler": "dpmpp_2m", "scheduler": "karras"}
TIMED = ((8, 128), (16, 128), (8, 256))
"""Frames, and pixels of height and width, of the clips whose time is taken."""
MOTION = (3.0, 3.0, 0.75, 0.875)
"""Of Text2Video-Zero: pixels a frame right and down, 12 of 512, and t0 and t1, the paper's 44 and 47 steps of 50 on the
nearest two of 8."""
NEGLIGIBLE = 0.1
"""Of a step's time."""
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "obeys change": ("change of it", "+.1%"),
    "look": ("look as the prompt says", ".1%"),
    "kept": ("SSIM with the first frame", ".3f"),
    "form": ("form", ".3f"),
    "form change": ("change of it", "+.3f"),
    "grain": ("grain", ".2f"),
    "grain change": ("change of it", "+.2f"),
    "ssim": ("SSIM of neighbours", ".3f"),
    "psnr": ("PSNR of neighbours (dB)", ".1f"),
    "travel": ("travel (pixels)", ".1f"),
    "step": ("step (pixels a frame)", ".2f"),
}
ON_SHEET = [way for way in CROSS if way.attention in ("self", "momentum") or way.noise == "dependency"]
ON_SHEET += [BY_MU[0], *BY_MU[-2:], BY_KL[-1]]
STEP_WITH = "Step with {} attention"
_CLIP, _STEADIER = "a clip from an image model", "frames that are more alike"
USES = {
    ("Dependency noise is steadier than i.i.d.", "ssim"): Use(
        _STEADIER, "DependencyNoise in the place of RandomNoise", f"kl {KL:g}", "Dependency noise, bisection"
    ),
    (f"λ = {KLS[-1]:g} moves more than λ = {KL:g}", "travel"): Use(
        "more motion", "DependencyNoise with a higher kl", f"kl {KLS[-1]:g} in the place of {KL:g}"
    ),
    (f"Momentum is steadier than self-attention, λ = {SWEPT_KL:g}", "ssim"): Use(
        _STEADIER,
        "TemporalMomentumAttention beside DependencyNoise",
        f"mu {MU:g}, kl {SWEPT_KL:g}",
        STEP_WITH.format("momentum"),
    ),
    ("ZS² is closer to the prompt than Text2Video-Zero", "look"): Use(
        _CLIP,
        "ZS² (both nodes) in the place of MotionFieldNoise",
        f"kl {KL:g}, mu {MU:g}",
        STEP_WITH.format("momentum"),
    ),
}
"""What a reader may do with a claim, by its text and measure."""
Figures = dict[str, Tensor]
"""Name of a way → (scenes,) or (scenes, frames); NaN for scenes that it has not drawn."""


class Scene:
    """A scene, how it is asked for, and the seed of its clips."""

    def __init__(self, number: int) -> None:
        shapes, rng = pack("demo.shapes"), random.Random(number)
        self.number, self.kind, self.shown = number, [*SAYS][number % 2], shapes.random_scene(rng)
        self.prompt = shapes.caption(self.shown, rng)
        if self.kind == OPEN:
            self.prompt = open_prompt(self.shown)

    def strip(self, folder: Path, way: Way) -> Path:
        """The file of the frames, side by side."""
        return folder / way.name.replace(", ", "_").replace(" ", "_") / f"{self.number:02}.png"


class Bench(Demo):
    """The demo model, plain and with every attention, and the noises."""

    def model_of(self, attention: str, mu: float) -> Any:
        if attention == "self":
            return self.model
        if attention == "momentum":
            return pack("nodes.momentum").TemporalMomentumAttention.execute(self.model, mu).args[0]
        return pack("nodes.cross_frame").CrossFrameAttention.execute(self.model, attention).args[0]

    def draw(self, scene: Scene, way: Way) -> Tensor:
        """(FRAMES, 128, 128, 3) in [0, 1]."""
        model, positive = self.model_of(way.attention, way.mu), self.encode(scene.prompt)
        if way.noise == FIELD:
            return self.decode(self.moved(model, positive, scene.number))
        if way.noise == "dependency":
            noise = dependency_noise(scene.number, way.strength, way.candidates)
        else:
            (noise,) = pack("nodes.noise").VideoNoisePrior.execute(scene.number, way.noise, way.strength).args
        drawn = self.sample(model, noise.generate_noise(empty(FRAMES)), positive, seed=scene.number, **SETTINGS)
        return self.decode(drawn)

    def moved(self, model: Any, positive: list, seed: int) -> Tensor:
        """Text2Video-Zero's latents: its motion field, scaled from 512 pixels, and no background smoothing."""
        from comfy.samplers import sampler_object

        cfg, negative, sampler = SETTINGS["cfg"], self.encode(""), sampler_object(SETTINGS["sampler"])
        sigmas = self.sigmas(SETTINGS["steps"], SETTINGS["scheduler"])
        asked = (positive, negative, cfg, seed, empty(FRAMES), sigmas, *MOTION)
        start, rest = pack("nodes.motion_field").MotionFieldNoise.execute(model, *asked).args
        nothing = torch.zeros_like(start["samples"])
        return guided(model, nothing, start["samples"], rest, positive, negative, cfg, sampler)

    def record(self, scene: Scene, way: Way, folder: Path) -> Json:
        """Figures of every frame, or of every two neighbouring ones; ``centre``: x and y."""
        frames = strip(scene.strip(folder, way), partial(self.draw, scene, way))
        reader, similarity = pack("demo.reader"), pack("metrics.similarity")
        reading = reader.read(frames)
        right = reader.correct(reading, scene.shown)
        figures = {
            "look": torch.stack([right[name] for name in SAYS[OPEN]]).float().mean(0),
            "kept": similarity.ssim(frames[:1].expand_as(frames[1:]), frames[1:]),
            "obeys": torch.stack([right[name] for name in SAYS[scene.kind]]).float().mean(0),
            "form": reading.confidence,
            "grain": reading.grain,
            "centre": reading.centre,
            "ssim": similarity.ssim(frames[:-1], frames[1:]),
            "psnr": similarity.psnr(frames[:-1], frames[1:]),
        }
        about = {"scene": scene.number, "kind": scene.kind, "prompt": scene.prompt, "way": way.name}
        return about | {name: values.tolist() for name, values in figures.items()}


# Figures -------------------------------------------------------------------------------------------------------------


def change(values: Tensor) -> Tensor:
    """Mean of the last quarter of the frames less that of the first: (..., frames) → (...,)."""
    quarter = max(values.shape[-1] // 4, 1)
    return values[..., -quarter:].mean(-1) - values[..., :quarter].mean(-1)


def travel(centre: Tensor) -> Tensor:
    """How far a track gets from where it starts: (..., frames, 2) → (...,)."""
    return (centre - centre[..., :1, :]).norm(dim=-1).amax(-1)


def step(centre: Tensor) -> Tensor:
    """How far a track goes from a frame to the next, on average: (..., frames, 2) → (...,)."""
    return centre.diff(dim=-2).norm(dim=-1).mean(-1)


def raw(records: list[Json], name: str) -> Figures:
    """What was measured, (scenes, frames) for every way."""
    scenes = sorted({record["scene"] for record in records})
    ways: dict[str, dict[int, Tensor]] = {}
    for record in records:
        values = torch.tensor(record[name], dtype=torch.float64)
        ways.setdefault(record["way"], {})[record["scene"]] = values
    nothing = torch.full_like(values, torch.nan)
    return {way: torch.stack([drawn.get(scene, nothing) for scene in scenes]) for way, drawn in ways.items()}


def figures(records: list[Json], measure: str) -> Figures:
    """One of ``MEASURES``: (scenes,) for every way."""
    name, _, of = measure.partition(" ")
    read = {"travel": travel, "step": step}.get(name, partial(torch.mean, dim=-1))
    source = "centre" if name in ("travel", "step") else name
    return {way: (change if of else read)(values) for way, values in raw(records, source).items()}


def gain(asked: Asked, records: list[Json]) -> Tensor:
    """What a claim is about, clip by clip: (scenes,)."""
    _, _, measure, way, other, _ = asked
    values = figures(records, measure)
    return values[way.name] - (values[other.name] if other else 0)


def claims(records: list[Json]) -> list[Claim]:
    """Those whose ways were drawn."""
    drawn, found = {record["way"] for record in records}, []
    for asked in ASKED:
        where, text, measure, way, other, sign = asked
        if {each.name for each in (way, other) if each} <= drawn:
            name, _, change = measure.partition(" ")
            title = {"obeys": "share of the prompt that is obeyed"}.get(name, MEASURES[name][0])
            figure = f"{'change of ' if change else ''}{title}, {way.name}{f', less {other.name}' if other else ''}"
            form = "+" + MEASURES[name][1]
            how = {"is_papers": bool(sign), "worth": worth(name), "use": USES.get((text, name))}
            found.append(Claim.of(where, text, figure, gain(asked, records), form, sign, **how))
    return found


# Cost ----------------------------------------------------------------------------------------------------------------


def cost(bench: Bench, rounds: int, kept: Path) -> Json:
    """Processor seconds of one thread for two sampling steps, of each length and size and each attention one a round.
    ``kept``: the file that has what was timed before, and gets the rest."""
    taken: Json = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for count, side in TIMED if rounds else ():
        if (clip := f"{count} frames, {side} px") not in taken:
            runs = {name: sampling(bench.model_of(way, MU), count, side) for way, name in ATTENTIONS.items()}
            taken[clip] = take_turns(runs, rounds)
            kept.write_text(json.dumps(taken), "utf-8")
    torch.set_num_threads(threads)
    return taken


def ratios(taken: Json) -> dict[str, Figures]:
    """Time relative to self-attention's, round by round: clip → attention → (rounds,)."""
    return {
        clip: {name: torch.tensor(times) / torch.tensor(named[ATTENTIONS["self"]]) for name, times in named.items()}
        for clip, named in taken.items()
    }


def costs(taken: Json) -> list[Claim | Cost]:
    """The longest clip speaks for the claim."""
    momentum, found = ATTENTIONS["momentum"], []
    for clip, of in ratios(taken).items():
        middle = {name: estimate(ratio, np.median) for name, ratio in of.items()}
        peers = "; ".join(
            f"{ATTENTIONS[key]} {middle[ATTENTIONS[key]].value:.3f}" for key in ("first", "first_and_previous")
        )
        what = f"{STEP_WITH.format(momentum)}, {clip}, of one with self-attention"
        found.append(Cost(what, shown(middle[momentum], ".3f"), "1 + what a running mean of keys takes", peers))
    text = "ZS² “incurs negligible additional computational overhead”"
    figure = f"time of a step with momentum, of one with self-attention, {clip}"
    how = {"beside": 1.0, "tolerance": NEGLIGIBLE, "unit": "rounds"}
    return [Claim("§1", text, figure, middle[momentum], ".3f", len(of[momentum]), 0, **how), *found]


# Telling -------------------------------------------------------------------------------------------------------------


def cost_table(taken: Json) -> str:
    of = ratios(taken)
    rows = [
        [name, *(shown(estimate(each[name], np.median), ".3f") for each in of.values())]
        for name in [*ATTENTIONS.values()][1:]
    ]
    return table(["time of a step, of self-attention's", *of], rows)


def chart(kinds: dict[str, list[Json]]) -> Any:
    """Above, frame by frame, a column for each attention and a line for each noise; below, both sweeps."""
    everything = [record for records in kinds.values() for record in records]
    subtitle = "Above: frame by frame, for every attention. Below: over μ and λ, by what the prompt leaves open."
    figure, grid = panels("Noises and attentions", subtitle, 5, 4, (340, 270))
    for row, name in zip(grid, ("obeys", "form", "grain"), strict=False):
        values = raw(everything, name)
        for axes, attention in zip(row, ATTENTIONS, strict=True):
            style(axes, ATTENTIONS[attention], "frame", MEASURES[name][0] if axes is row[0] else "")
            axes.sharey(row[0])
            ways = {way.noise: way for way in CROSS if way.attention == attention}
            for colour, (noise, _) in enumerate(NOISES):
                if (way := ways[noise]).name in values:
                    found = [estimate(column) for column in values[way.name].unbind(1)]
                    line(axes, range(1, len(found) + 1), found, colour, way.noise_name, band=True)
    legend(figure, grid[0][0])
    for row, ways, (symbol, swept) in zip(grid[3:], (BY_MU, BY_KL), (("μ", MUS), ("λ", KLS)), strict=True):
        for axes, name in zip(row, ("form", "grain change", "ssim", "travel"), strict=True):
            style(axes, {"grain change": "change of grain"}.get(name, MEASURES[name][0]), symbol)
            for colour, (kind, records) in enumerate(kinds.items()):
                values = figures(records, name) if records else {}
                places = [place for place, way in enumerate(ways) if way.name in values]
                line(axes, places, [estimate(values[ways[place].name]) for place in places], colour, kind)
            axes.set_xticks(range(len(ways)), [f"{value:g}" for value in swept])
    grid[3][3].legend(frameon=False, fontsize=8)
    return figure


def tables(kinds: dict[str, list[Json]], taken: Json) -> str:
    everything = [record for records in kinds.values() for record in records]
    parts = [f"**The paper's claims** (clips of {FRAMES} frames)\n\n{claims_table(claims(everything))}"]
    parts += [f"**Cost** (medians of processor time, one thread)\n\n{cost_table(taken)}"] if taken else []
    for title, ways in TABLES.items():
        for kind, records in kinds.items():
            values = {name: figures(records, name) for name in MEASURES} if records else {"form": {}}
            counts = {way.name: len(units_of(values["form"][way.name])) for way in ways if way.name in values["form"]}
            named = {f"{way} ({count})": way for way, count in counts.items()}
            told = means(
                named, MEASURES, lambda told, name, of=values, named=named: of[name][named[told]], "way (clips)"
            )
            parts += [f"**{title}. {kind}**\n\n{told}"] * bool(named)
    return "\n\n".join(parts)


def main() -> None:
    parser = command_line(
        __doc__,
        "minutes",
        "publish",
        scenes=(24, "prompts, each with a seed; 0: only take the time"),
        rounds=(20, "of taking the time; 0: leave that out"),
    )
    parser.add_argument("--asked", action="store_true", help="leave out what no claim asks for")
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        bench = Bench()
        taken = cost(bench, arguments.rounds, folder / "cost.json")
        if not arguments.scenes:
            print(cost_table(taken))
            return
        scenes = [Scene(number) for number in range(arguments.scenes)]
        wanted = (
            (f"{scene.number:02} {way.name}", partial(bench.record, scene, way, folder))
            for ways in PARTS[: -1 if arguments.asked else None]
            for scene in scenes
            for way in ways
        )
        done = list(Records(folder, SETTINGS | {"frames": FRAMES}).take(wanted, arguments.minutes))
    kinds = {kind: [record for record in done if record["kind"] == kind] for kind in SAYS}
    shown_scenes = scenes[:2]
    ways = [way for way in ON_SHEET if all(scene.strip(folder, way).exists() for scene in shown_scenes)]
    blocks = [
        (f"“{scene.prompt}”", {way.name: strip(scene.strip(folder, way))[::2] for way in ways})
        for scene in shown_scenes
    ]
    pictures = sheet(blocks, side=72) if ways else None
    print(publish(NAME, folder, arguments.publish, tables(kinds, taken), chart(kinds), pictures))


if __name__ == "__main__":
    main()
