"""Does a clip that is made in several runs drift, and what holds it?

    python benchmarks/drift_study.py --comfyui DIR [--scenes 4] [--runs 8] [--minutes M] [--out FOLDER] [--publish]

The demo model draws clips in a row: each run of 4 frames begins with the last frame of the one before, noised for 60%
of the steps, as clips are chained with models that begin with a picture. The ways:

plain: every run has noise of its own. carried noise: that of one long clip (Dependency Noise, `previous`). momentum:
with Temporal Momentum Attention, too, whose state goes from run to run. matched: carried noise, and every run is held
to the first one's colours (Match Clip Colour) before its last frame begins the next one. matched latents: the same by
Match Latent Colour, without decoding.

Measured: the drift per 100 frames of lightness, contrast, saturation and sharpness, as Temporal Consistency tells it;
the jump at a seam, in steps between other frames; and the share of the prompt that the last run obeys. Beside that, of
rendered clips with a drift that is known, how much of it Match Clip Colour leaves, and what it does to their motion.

Clips are independent; intervals are over clips. What was drawn stays in FOLDER: an interrupted study goes on.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from claims import estimate, shown
from figures import legend, line, means, panels, publish, sheet, style, table
from harness import (
    SAYS,
    Demo,
    Json,
    Records,
    command_line,
    dependency_noise,
    empty,
    enter,
    obeys,
    open_prompt,
    pack,
    strip,
)
from torch import Tensor

NAME = "drift_study"
FRAMES = 4
"""Of a run."""
SETTINGS: dict[str, Any] = {
    "steps": 10,
    "cfg": 5.0,
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "denoise": 0.6,
    "kl": 0.1,
    "mu": 0.98,
}
WAYS = ("plain", "carried noise", "momentum", "matched", "matched latents")
LOOKS = ("lightness", "contrast", "saturation", "sharpness")
UNITS = {"lightness": ".2f", "contrast": ".2f", "saturation": ".2f", "sharpness": ".3f"}
OPEN = SAYS["The prompt leaves size and place open"]
KNOWN = (("star", "yellow", "purple"), ("circle", "orange", "blue"), ("cross", "white", "green"))
KNOWN += (("square", "red", "white"), ("triangle", "blue", "yellow"), ("star", "purple", "black"))


class Bench(Demo):
    def runs(self, number: int, way: str, runs: int) -> Tensor:
        """A clip of so many runs, (frames, 128, 128, 3)."""
        positive = self.encode(open_prompt(scene_of(number)))
        clip: list[Tensor] = []
        noise: Any = None
        first = start = momentum = None
        for run in range(runs):
            noise = self.noise(number, run, way, noise)
            model = self.patched(way, momentum)
            latents = self.draw(model, noise.generate_noise(empty(FRAMES)), positive, start, number)
            if way == "momentum" and run:  # the first run has other noise levels
                of_run = pack("nodes.momentum_of_run").MomentumOfRun
                momentum = of_run.execute(model, {"samples": latents}).args[0]
            first = latents if first is None else first
            if way == "matched latents" and run:
                node = pack("nodes.colour").MatchLatentColour
                latents = node.execute({"samples": latents}, {"samples": first}).args[0]["samples"]
            frames = self.decode(latents)
            if way == "matched" and run:
                frames = pack("nodes.colour").MatchClipColour.execute(frames, clip[0]).args[0]
            clip.append(frames)
            start = latents[-1:] if way == "matched latents" else self.vae.encode(frames[-1:])
        return torch.cat(clip)

    def noise(self, seed: int, run: int, way: str, before: Any) -> Any:
        if way == "plain" or before is None:
            return dependency_noise(seed + 1000 * run, SETTINGS["kl"])
        previous = pack("nodes.noise").NoiseFrames.execute(before, empty(FRAMES)).args[0]
        return dependency_noise(seed, SETTINGS["kl"], previous=previous)

    def patched(self, way: str, momentum: Any) -> Any:
        if way != "momentum":
            return self.model
        node = pack("nodes.momentum").TemporalMomentumAttention
        return node.execute(self.model, SETTINGS["mu"], previous=momentum, keep=True).args[0]

    def draw(self, model: Any, noise: Tensor, positive: list, start: Tensor | None, seed: int) -> Tensor:
        how = {name: SETTINGS[name] for name in ("steps", "cfg", "sampler", "scheduler")}
        if start is not None:
            how |= {"latents": start.expand_as(noise).clone(), "denoise": SETTINGS["denoise"]}
        return self.sample(model, noise, positive, **how, seed=seed)

    def record(self, number: int, way: str, runs: int, folder: Path) -> Json:
        frames = strip(path_of(folder, way, number), partial(self.runs, number, way, runs))
        told = measured(frames)
        step = frames.diff(dim=0).abs().mean((1, 2, 3)).double()
        seams = pack("metrics.look").seam_jumps({"step": step}, range(FRAMES, len(frames), FRAMES))
        jumps = [each["step"]["ratio"] for each in seams.values()]
        obeyed = obeys(frames[-FRAMES:], scene_of(number), OPEN).mean().item()
        return {"scene": number, "way": way, **told, "seam": sum(jumps) / len(jumps), "obeys": obeyed}


def scene_of(number: int) -> Any:
    return pack("demo.shapes").random_scene(random.Random(number))


def path_of(folder: Path, way: str, number: int) -> Path:
    return folder / way.replace(" ", "_") / f"{number:02}.png"


def measured(frames: Tensor) -> Json:
    look = pack("metrics.look")
    seen = look.look(frames)
    return {"look": {name: values.tolist() for name, values in asdict(seen).items()}, "drift": look.drifts(seen)}


# A drift that is known -----------------------------------------------------------------------------------------------


def drifting(clip: Tensor) -> Tensor:
    """In 100 frames saturation falls by 30% and contrast by 40%, and a warm cast grows."""
    time = (torch.arange(len(clip)) / 100)[:, None, None, None]
    luma = (clip @ torch.tensor([0.299, 0.587, 0.114]))[..., None]
    faded = 0.5 + (luma + (clip - luma) * (1 - 0.3 * time) - 0.5) * (1 - 0.4 * time)
    return (faded + 0.1 * time * torch.tensor([1.0, 0.7, 0.4])).clamp(0, 1)


def known(frames: int = 24) -> dict[str, Json]:
    """Method → of every rendered clip: the share of its drift that is left, and how its motion changed."""
    module, flow = pack("frames.colour"), pack("metrics.flow").optical_flow
    found: dict[str, Json] = {}
    for number, (shape, colour, background) in enumerate(KNOWN):
        clip = pack("demo.clips").render_clip(shape, colour, background, ("slide", "turn")[number % 2], frames, number)
        drifted = drifting(clip.frames)
        true, wrong = (pack("metrics.look").drifts(pack("metrics.look").look(each)) for each in (clip.frames, drifted))
        still = flow(clip.frames[:1], clip.frames[1:2])
        for method in pack("frames.colour_maps").METHODS:
            matched = module.matched_pictures(drifted, clip.frames[:1], module.Match(method))
            told = pack("metrics.look").drifts(pack("metrics.look").look(matched))
            values = found.setdefault(method, {name: [] for name in (*LOOKS[:3], "error", "motion")})
            for name in LOOKS[:3]:
                values[name].append(
                    abs(told[name].value - true[name].value) / abs(wrong[name].value - true[name].value)
                )
            errors = [(each - clip.frames).abs().mean().item() for each in (matched, drifted)]
            moved = (flow(matched[:1], matched[1:2]) - still).norm(dim=-1).mean() / still.norm(dim=-1).mean()
            values["error"].append(errors[0] / errors[1])
            moves = still.norm(dim=-1).mean() > 1e-3  # a circle turns unseen
            values["motion"].append(moved.item() if moves else float("nan"))
    return found


# Telling -------------------------------------------------------------------------------------------------------------


def values_of(records: list[Json], way: str, name: str) -> Tensor:
    """Of every clip of a way: (scenes,). ``name`` of a look: its drift without its sign; with "signed ", with it."""
    chosen = [each for each in sorted(records, key=lambda each: each["scene"]) if each["way"] == way]
    if name in ("seam", "obeys"):
        return torch.tensor([each[name] for each in chosen], dtype=torch.float64)
    signed = torch.tensor([each["drift"][name.removeprefix("signed ")][0] for each in chosen], dtype=torch.float64)
    return signed if name.startswith("signed ") else signed.abs()


def drawn(records: list[Json]) -> list[str]:
    """The ways that a study came to."""
    return [way for way in WAYS if any(each["way"] == way for each in records)]


def paired(records: list[Json], way: str) -> list[Json]:
    """Those of scenes that both ways have drawn."""
    both = [{each["scene"] for each in records if each["way"] == name} for name in (way, "plain")]
    return [each for each in records if each["scene"] in both[0] & both[1]]


def tables(records: list[Json], of_known: dict[str, Json], runs: int) -> str:
    clips = len({each["scene"] for each in records})
    measures = {name: (name, UNITS[name]) for name in LOOKS}
    signed = {f"signed {name}": (name, "+" + UNITS[name]) for name in LOOKS}
    more = {"seam": ("jump at a seam, in other steps", ".2f"), "obeys": ("last run obeys the prompt", ".1%")}
    values = partial(values_of, records)
    ways = drawn(records)
    less = table(
        ["less plain, clip by clip", *LOOKS],
        [
            [way, *(shown(estimate(less_plain(records, way, name)), "+" + UNITS[name]) for name in LOOKS)]
            for way in ways
            if way != "plain"
        ],
    )
    left = {name: (name, ".1%") for name in LOOKS[:3]}
    left |= {"error": ("error of the pictures", ".1%"), "motion": ("change of the flow", ".2%")}
    rendered = means(of_known, left, lambda method, name: torch.tensor(of_known[method][name]), "method")
    return "\n\n".join(
        [
            f"**Drift per 100 frames, whatever its direction** ({clips} clips of {runs} runs of {FRAMES} frames)"
            f"\n\n{means(ways, measures | more, values, 'way')}",
            f"**Its direction**\n\n{means(ways, signed, values, 'way')}",
            f"**Beside plain**\n\n{less}",
            f"**Share of a known drift that Match Clip Colour leaves** ({len(KNOWN)} rendered clips)\n\n{rendered}",
        ]
    )


def less_plain(records: list[Json], way: str, name: str) -> Tensor:
    """Scene by scene."""
    both = paired(records, way)
    return values_of(both, way, name) - values_of(both, "plain", name)


def chart(records: list[Json]) -> Any:
    figure, ((*row,),) = panels("Clips in a row", "Change since the first run, on average.", 1, len(LOOKS), (330, 300))
    for axes, name in zip(row, LOOKS, strict=True):
        style(axes, name, "frame")
        for colour, way in enumerate(WAYS):
            chosen = [each["look"][name] for each in records if each["way"] == way]
            if chosen:
                values = torch.tensor(chosen, dtype=torch.float64)
                change = values - values[:, :FRAMES].mean(1, keepdim=True)
                line(
                    axes, range(change.shape[1]), [estimate(each) for each in change.unbind(1)], colour, way, band=True
                )
    legend(figure, row[0])
    return figure


def main() -> None:
    parser = command_line(
        __doc__, "minutes", "publish", scenes=(4, "prompts, each with a seed"), runs=(8, "of 4 frames each")
    )
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    folder, runs = arguments.out, arguments.runs
    with torch.inference_mode():
        bench = Bench()
        wanted = (
            (f"{number:02} {way}", partial(bench.record, number, way, runs, folder))
            for number in range(arguments.scenes)
            for way in WAYS
        )
        kept = Records(folder, SETTINGS | {"runs": runs, "momentum handed on": True})
        done = list(kept.take(wanted, arguments.minutes))
        of_known = known()
    ways = drawn(done)
    whole = [n for n in range(arguments.scenes) if all(path_of(folder, way, n).exists() for way in ways)]
    blocks = [
        (
            f"“{open_prompt(scene_of(number))}”",
            {way: strip(path_of(folder, way, number))[FRAMES - 1 :: FRAMES] for way in ways},
        )
        for number in whole[:2]
    ]
    columns = [f"frame {number}" for number in range(FRAMES - 1, FRAMES * runs, FRAMES)]
    pictures = sheet(blocks, columns, side=80) if blocks else None
    print(publish(NAME, folder, arguments.publish, tables(done, of_known, runs), chart(done), pictures))


if __name__ == "__main__":
    main()
