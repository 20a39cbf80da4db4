"""ZS² beside plain sampling on the demo's picture model: is the clip more coherent, and does it still obey the prompt?

    python benchmarks/zs2_compare.py --comfyui DIR [--clips 12] [--frames 8] [--out FOLDER] [--publish]

Varied: noise and attention. Random scenes and seeds, the same for all four ways: frames drawn independently or with
dependency noise, each with self-attention or with momentum attention. Every scene is asked for twice: by a prompt that
says all of it, and by one that leaves size and place open. ``--publish`` writes the tables and the contact sheet that
the README shows. Run it with the Python of that ComfyUI.

Measured: SSIM and PSNR of neighbouring frames; the share of the prompt that frames obey; motion, how far the thing's
centre gets from where it starts, over the frames that show one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from claims import Claim, Use
from figures import PACK, PICTURES, means, publish, sheet
from harness import Json, Records, World, command_line, dependency_noise, empty, enter, pack, strip, world_digests
from power import worth
from torch import Tensor

NAME = "zs2_compare"
SAYS = {
    "The prompt says everything": ("thing", "colour", "background", "size", "position"),
    "The prompt leaves size and place open": ("thing", "colour", "background"),
}
"""Kinds of prompts, and what of a picture they say."""
FULL, OPEN = SAYS
CFG = 3.0
README = PACK / "README.md"
MARKS = ("<!-- zs2_compare -->\n", "<!-- end of zs2_compare -->")
SHOWN = 4
"""Clips on the contact sheet: those of the first seeds, by prompts that say everything."""
WAYS = {
    "independent noise, self-attention": (False, False),
    "dependency noise alone": (True, False),
    "momentum attention alone": (False, True),
    "both (ZS²)": (True, True),
}
BASELINE, *_, OURS = WAYS
ON_SHEET = {"plain sampling": BASELINE, "ZS²": OURS}
MEASURES = {
    "ssim": ("SSIM of neighbouring frames", ".3f"),
    "psnr": ("PSNR of neighbouring frames (dB)", ".1f"),
    "fidelity": ("obeys the prompt", ".1%"),
    "motion": ("motion (pixels)", ".1f"),
}
ALIGNED = 0.02
"""Of what a prompt says, the share that may differ while clips count as equally aligned with it."""


KL, MU = 0.02, 0.98
"""λ and μ, unless told otherwise."""
_AIM = (
    "a coherent clip from an image model",
    "ZS²: DependencyNoise, TemporalMomentumAttention",
    f"kl {KL:g}, mu {MU:g}",
)


def measure(frames: Tensor, scene: Any, kind: str) -> dict[str, float]:
    similarity, world = pack("metrics.similarity"), pack("demo.world.reader")
    readings = [world.read(frame) for frame in frames]
    right = [world.correct(reading, scene) for reading in readings]
    centre = torch.tensor([[each.found[0].x, each.found[0].y] for each in readings if each.found]).reshape(-1, 2)
    return {
        "ssim": similarity.ssim(frames[:-1], frames[1:]).mean().item(),
        "psnr": similarity.psnr(frames[:-1], frames[1:]).mean().item(),
        "fidelity": sum(each[name] for each in right for name in SAYS[kind]) / len(right) / len(SAYS[kind]),
        "motion": (centre - centre[:1]).norm(dim=1).amax().item() if len(centre) else 0.0,
    }


class Study:
    """Draws with the nodes themselves."""

    def __init__(self, frames: int, kl: float, mu: float, steps: int) -> None:
        self.demo, self.frames, self.kl, self.steps = World(), frames, kl, steps
        momentum = pack("nodes.momentum").TemporalMomentumAttention.execute(self.demo.model, mu).args[0]
        self.models = {False: self.demo.model, True: momentum}

    def draw(self, way: str, prompt: str, seed: int) -> Tensor:
        is_dependent, has_momentum = WAYS[way]
        independent = pack("nodes.noise").VideoNoisePrior.execute(seed, "iid", 0.0).args[0]
        noise = (dependency_noise(seed, self.kl) if is_dependent else independent).generate_noise(empty(self.frames))
        positive = self.demo.encode(prompt)
        sampled = self.demo.sample(self.models[has_momentum], noise, positive, self.steps, cfg=CFG, seed=seed)
        return self.demo.decode(sampled)

    def record(self, folder: Path, seed: int, scene: Any, kind: str, prompt: str) -> Json:
        ways = {}
        for way in WAYS:
            frames = strip(folder / f"{way}.png", partial(self.draw, way, prompt, seed))
            ways[way] = measure(frames, scene, kind)
        return {"kind": kind, "prompt": prompt, "ways": ways}


def values(records: list[Json], kind: str, way: str, name: str) -> Tensor:
    return torch.tensor([record["ways"][way][name] for record in records if record["kind"] == kind])


def gain(records: list[Json], kind: str, name: str) -> Tensor:
    return values(records, kind, OURS, name) - values(records, kind, BASELINE, name)


def claims(records: list[Json]) -> list[Claim]:
    """A scene's two prompts are taken together."""
    ssim, fidelity = (torch.stack([gain(records, kind, name) for kind in SAYS], 1) for name in ("ssim", "fidelity"))
    return [
        Claim.of(
            "abstract",
            "ZS² samples coherent clips from an image model, without training",
            "SSIM of neighbouring frames, less that of plain sampling",
            ssim,
            "+.3f",
            1,
            worth=worth("ssim"),
            use=Use(*_AIM, "Step with momentum attention"),
        ),
        Claim.of(
            "table 1",
            "ZS²'s clips are as close to the prompt as images of plain sampling",
            "share of the prompt that the frames show, less that of plain sampling",
            fidelity,
            "+.1%",
            0,
            tolerance=ALIGNED,
            use=Use("a clip that obeys as a picture does", *_AIM[1:], "Step with momentum attention"),
        ),
    ]


def tables(records: list[Json], about: str) -> str:
    parts = []
    for kind in SAYS:
        count = sum(record["kind"] == kind for record in records)
        ways = means(WAYS, MEASURES, lambda way, name, kind=kind: values(records, kind, way, name))
        told = {"gain of ZS², clip by clip": ""}
        gains = means(told, MEASURES, lambda _, name, kind=kind: gain(records, kind, name), gains=True)
        parts.append(f"**{kind}** ({count} clips of {about})\n\n{ways}\n{gains.splitlines()[-1]}")
    return "\n\n".join(parts)


def asked(clips: int) -> Iterator[tuple[int, Any, str, str]]:
    """Seed, scene, kind of prompt and prompt."""
    for seed in range(clips):
        rng = random.Random(seed)
        scene = pack("demo.world.scenes").random_scene(rng, pairs=0.0, backgrounds=0.0, fills=0.0)
        (thing,) = scene.things
        yield seed, scene, FULL, pack("demo.world.captions").caption(scene, rng)
        open_prompt = f"a {thing.surface.colour} {thing.kind} on a {scene.background.colour} background"
        yield seed, scene, OPEN, re.sub(r"\ba (?=[aeiou])", "an ", open_prompt)


def main() -> None:
    parser = command_line(
        __doc__,
        "minutes",
        "publish",
        clips=(12, "scenes, each with a seed of its own"),
        frames=(8, "of a clip"),
        kl=(KL, "of dependency noise"),
        mu=(MU, "of momentum"),
        steps=(20, "of sampling"),
    )
    arguments = parser.parse_args()
    enter(arguments)
    settings = {name: getattr(arguments, name) for name in ("frames", "kl", "mu", "steps")}
    kept = Records(arguments.out, {**settings, "cfg": CFG, **world_digests()})
    study, out = Study(**settings), arguments.out
    named = ((f"{each[0]:02} {'open' if each[2] == OPEN else 'full'}", each) for each in asked(arguments.clips))
    with torch.inference_mode():
        wanted = ((name, partial(study.record, out / name, *each)) for name, each in named)
        records = list(kept.take(wanted, arguments.minutes))
    blocks = [
        (f"“{r['prompt']}”", {name: strip(out / r["key"] / f"{way}.png") for name, way in ON_SHEET.items()})
        for r in [each for each in records if each["kind"] == FULL][:SHOWN]
    ]
    text = tables(records, f"{arguments.frames} frames, `kl` {arguments.kl:g}, `mu` {arguments.mu:g}")
    shown = sheet(blocks, side=104)
    print(publish(NAME, arguments.out, False, text, pictures=shown))
    if arguments.publish:
        shown.save(PICTURES / f"{NAME}.jpg", quality=88, optimize=True)
        before, rest = README.read_text("utf-8").split(MARKS[0])
        README.write_text(f"{before}{MARKS[0]}{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")


if __name__ == "__main__":
    main()
