"""What IE-Adapt's guidances gain at prompts that a model does not obey at once: Tables 2 and 4 where there is room.

    python benchmarks/hard_prompts.py --comfyui DIR [--prompts 64] [--steps 12] [--out FOLDER] [--publish]

The model is the picture model of the demo's world (``demo/world``), with the repository's weights or ``--weights``. The
published figures are of 99,360 pictures of its training, after which two things, stripes, dots and gradients were often
not as the prompt says. The weights of today obey more (demo/training/README.md), so there is less to gain. The first
demo model obeys 98 to 100% of its prompts.

All pictures of a prompt start from the same noise. Guidances perturb the layer of highest entropy, as EntropyRegister
finds it at the first step for each batch of prompts, or the layer that does the most damage when perturbed, as
LayerSweep finds it. Beside plain CFG stand two controls: CFG at a higher scale, as guidance of any kind makes pictures
more like their prompts, and plain CFG with half as many steps again, which costs what [A − I] does.

Measured by the world's reader, which the tests check on drawn pictures. obeys: share of thing, colour, background,
place and size that are as said (of two things, both must be). all: pictures in which everything is. form: how well the
drawn thing covers the ideal one closest to it (intersection over union). specks: pictures with a component of a wrong
colour larger than 12 pixels. 95% bootstrap intervals over prompts; differences are taken prompt by prompt. FOLDER keeps
what was measured and drawn: an interrupted study goes on where it was.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from claims import Claim, Use
from figures import claims_table, means, publish, rows_chart, sheet
from harness import Json, Records, World, command_line, enter, guided, pack, strip, world_digests
from power import worth
from safetensors.torch import load_file
from torch import Tensor
from ways import Subject

NAME = "hard_prompts"
BATCH = 16
CFG, HIGHER = 3.0, 5.0
PLAIN, MORE_CFG, MORE_STEPS = "plain CFG", f"CFG {HIGHER:g}", "half as many steps again"
PAIRS = ("A-I", "U-A", "U-I")
ENTROPY, SWEPT = "highest entropy", "most damage"
GUIDED = {
    **{name: (ENTROPY, name, 2.0) for name in (*PAIRS, "strategy 1", "strategy 3", "strategy 4")},
    **{f"{name}, {SWEPT}, λ={scale:g}": (SWEPT, name, scale) for name in ("A-I", "U-I") for scale in (0.5, 2.0)},
}
"""Name → by what the layer is chosen, guidance, and λ."""
WAYS = (PLAIN, MORE_CFG, MORE_STEPS, *GUIDED)
SHOWN = tuple(way for way in WAYS if "strategy" not in way and way != "U-A")
"""On the sheet."""
SWEEP = "sweep"
"""The key of the record of the layer that does the most damage."""
KINDS: dict[str, Json] = {
    "two things": {"pairs": 1.0, "backgrounds": 0.0, "fills": 0.0},
    "patterns": {"pairs": 0.0, "backgrounds": 1.0, "fills": 0.0},
}
"""Of prompts, and the shares of such scenes."""
AIM, COST = "all of two things in one picture", "[A − I] at middle.0"
USES = {
    f"A-I, {SWEPT}, λ=2": Use(AIM, "IEGuidanceCFG, A-I, at the layer that LayerSweep finds", "scale 2", COST),
    "A-I": Use(AIM, "IEGuidanceCFG, A-I", "scale 2, the layer of highest entropy", COST),
    MORE_CFG: Use(AIM, "plain CFG, higher", f"cfg {HIGHER:g} in the place of {CFG:g}"),
}
"""Of the ways to draw two things."""
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "all": ("all as said", ".1%"),
    "form": ("form", ".3f"),
    "specks": ("has a speck", ".1%"),
}


@dataclass(frozen=True)
class Batch:
    """Scenes, what is said of them, and the model that is asked, with the noise of all ways."""

    scenes: list[Any]
    prompts: list[str]
    subject: Subject
    noise: Any


class Asked(World):
    """The world's picture model, and what it is asked."""

    def batch(self, kind: str, number: int, steps: int) -> Batch:
        rng = random.Random(f"{kind} {number}")
        scenes = [pack("demo.world.scenes").random_scene(rng, **KINDS[kind]) for _ in range(BATCH)]
        prompts = [pack("demo.world.captions").caption(scene, rng) for scene in scenes]
        positive = [[torch.cat([self.encode(prompt)[0][0] for prompt in prompts]), {}]]
        subject = Subject(self.model, positive, positive, self.encode(""), self.sigmas(steps), CFG, (BATCH, 4, 16, 16))
        return Batch(scenes, prompts, subject, subject.noise(number))

    def sweep(self, steps: int) -> Json:
        """The layer that does the most damage, on the first batch of two things."""
        of = self.batch("two things", 0, steps)
        run = of.subject.positive, of.subject.negative, of.noise, sampler(), of.subject.sigmas, of.subject.empty
        how = {"perturbation": "identity", "score": "change", "kind": "spatial", "cfg": CFG}
        swept, _, report = pack("nodes.layer_sweep").LayerSweep.execute(self.model, *run, self.vae, **how).args
        return {"layer": swept.selector, "report": json.loads(report)}

    def draw(self, of: Batch, steps: int, swept: str) -> dict[str, Tensor]:
        """The pictures of every way."""
        subject = of.subject
        (chosen,) = pack("nodes.entropy_register").SelectAttentionLayers.execute(self.model, swept).args
        registries = {ENTROPY: subject.highest, SWEPT: chosen}
        start = of.noise.generate_noise(subject.empty), subject.empty["samples"]

        def sampled(model: Any, cfg: float = CFG, count: int = steps) -> Tensor:
            run = self.sigmas(count), subject.positive, subject.negative, cfg, sampler()
            return self.decode(guided(model, *start, *run))

        return {
            PLAIN: sampled(self.model),
            MORE_CFG: sampled(self.model, cfg=HIGHER),
            MORE_STEPS: sampled(self.model, count=steps + steps // 2),
            **{
                way: sampled(subject.guided_by(guidance, scale, registries[by]))
                for way, (by, guidance, scale) in GUIDED.items()
            },
        }


def sampler() -> Any:
    from comfy.samplers import sampler_object

    return sampler_object("dpmpp_2m")


def measure(picture: Tensor, scene: Any) -> dict[str, float]:
    evaluation = pack("demo.world.evaluation")
    seen = evaluation.look(picture, "", scene)
    right = [*seen.correct.values()]
    overlaps = [each.overlap for each in seen.forms]
    return {
        "obeys": sum(right) / len(right),
        "all": float(all(right)),
        "form": sum(overlaps) / len(overlaps) if overlaps else 0.0,
        "specks": float(seen.speck > evaluation.SPECK),
    }


def record(world: Asked, folder: Path, kind: str, number: int, steps: int, swept: str) -> Json:
    """Figures of a batch of prompts drawn in every way; the pictures stay in ``folder``."""
    of, ways = world.batch(kind, number, steps), {}
    for way, pictures in world.draw(of, steps, swept).items():
        strip(folder / f"{way}.png", lambda pictures=pictures: pictures)
        ways[way] = [measure(*each) for each in zip(pictures, of.scenes, strict=True)]
    layers = {ENTROPY: of.subject.highest.selector, SWEPT: swept}
    return {"kind": kind, "prompts": of.prompts, "layers": layers, "ways": ways}


def values(records: list[Json], way: str, name: str) -> Tensor:
    """A figure of every prompt."""
    return torch.tensor([each[name] for record in records for each in record["ways"][way]], dtype=torch.float64)


def gain(records: list[Json], other: str, way: str, name: str) -> Tensor:
    """Of a way over another one, prompt by prompt."""
    return values(records, way, name) - values(records, other, name)


def claims(records: list[Json]) -> list[Claim]:
    """Of each kind of prompts; beside them, what the paper does not claim: guidances at the layer that does the most
    damage, and all of them against more CFG."""
    found = []
    for kind in KINDS:
        of = [record for record in records if record.get("kind") == kind]
        if not of:
            continue
        say = partial(_claim, of, kind)
        for way, (by, guidance, _) in GUIDED.items():
            if guidance in PAIRS:
                text = f"[{guidance.replace('-', ' − ')}] improves pictures that the model draws badly"
                found += [say("table 2", text, way, PLAIN, name, is_papers=by == ENTROPY) for name in ("obeys", "form")]
                text = f"{way} obeys more than CFG {HIGHER:g}"
                found.append(say("table 2", text, way, MORE_CFG, "obeys", is_papers=False))
        for better, worse in (("strategy 3", "A-I"), ("strategy 4", "A-I"), ("A-I", "strategy 1")):
            text = f"{better[0].upper()}{better[1:]} is better than {worse} where the model draws badly"
            found.append(say("table 4", text, better, worse, "obeys"))
        for way, use in USES.items() if kind == "two things" else ():
            text = f"{way} draws all that is said more often than plain CFG"
            found.append(say("table 2", text, way, PLAIN, "all", is_papers=False, use=use))
    return found


def _claim(of: list[Json], kind: str, where: str, text: str, way: str, other: str, name: str, **more: Any) -> Claim:
    title, form = MEASURES[name]
    figure = f"{title}, {way} less {other}, {kind}"
    more = {"unit": "prompts", "worth": worth(name), **more}
    return Claim.of(where, text, figure, gain(of, other, way, name), "+" + form, 1, **more)


def main() -> None:
    weights = pack("demo.world.model").WEIGHTS / "world_image.safetensors"
    parser = command_line(
        __doc__, "minutes", "publish", prompts=(64, f"of each kind, a multiple of {BATCH}"), steps=(12, "of sampling")
    )
    parser.add_argument("--weights", type=Path, default=weights, help="of the world's picture model (the repository's)")
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    out, steps = arguments.out, arguments.steps
    kept = Records(out, {"steps": steps, "cfg": CFG, **world_digests(arguments.weights)})
    with torch.inference_mode():
        world = Asked(load_file(arguments.weights))
        (sweep,) = kept.take([(SWEEP, partial(world.sweep, steps))], 0)
        keys = {f"{kind} {n:02}": (kind, n) for n in range(arguments.prompts // BATCH) for kind in KINDS}
        wanted = ((key, partial(record, world, out / key, *each, steps, sweep["layer"])) for key, each in keys.items())
        records = list(kept.take(wanted, arguments.minutes))
    of = {kind: [each for each in records if each["kind"] == kind] for kind in KINDS}
    of = {kind: each for kind, each in of.items() if each}
    tables = []
    for kind, each in of.items():
        highest = ", ".join(f"`{name}`" for name in sorted({record["layers"][ENTROPY] for record in each}))
        layers = f"{ENTROPY}: {highest}; {SWEPT}: `{sweep['layer']}`"
        head = f"**{kind.capitalize()}** ({BATCH * len(each)} prompts; {layers})"
        differences = means(WAYS[1:], MEASURES, partial(gain, each, PLAIN), "less plain CFG", gains=True)
        tables.append(f"{head}\n\n{means([PLAIN], MEASURES, partial(values, each))}\n\n{differences}")
    text = "\n\n".join([*tables, claims_table(claims(records))])
    chart = rows_chart(
        "Guidance where the model does not obey",
        "Differences from plain CFG, prompt by prompt, with 95% intervals.",
        WAYS[1:],
        MEASURES,
        {kind: partial(gain, each, PLAIN) for kind, each in of.items()},
        zero=True,
    )
    blocks = []
    for each in (each[0] for each in of.values()):  # the first prompts, whatever they look like
        drawn = {way: strip(out / each["key"] / f"{way}.png") for way in WAYS}
        blocks += [(f"“{each['prompts'][n]}”", {"": [drawn[way][n] for way in SHOWN]}) for n in range(3)]
    print(publish(NAME, out, arguments.publish, text, chart, sheet(blocks, SHOWN, side=172)))


if __name__ == "__main__":
    main()
