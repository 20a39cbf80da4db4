"""What IE-Adapt's guidances and edits do to clips of a trained video transformer: Tables 1 to 5 where there is room.

    python benchmarks/transformer_study.py --comfyui DIR [--clips 24] [--steps 16] [--out FOLDER] [--publish]

The model is the demo's video transformer (kind ``wan``): ComfyUI's WanModel with 6 M parameters, which attends to whole
clips and to the text, and does not obey every prompt. It draws clips of 17 frames. The published figures are of 209,408
clips and pictures of its training; the weights of today have seen 345,192.

*Guidance*: all clips of a prompt start from the same noise. Guidances perturb the layer of highest entropy, as
EntropyRegister finds it for each prompt at the first step, or the layer that does the most damage when perturbed, as
LayerSweep finds it. Beside plain CFG stand two controls: CFG at a higher scale, and plain CFG with half as many steps
again, which costs what [A − I] does.

*Editing*: the thing gets another colour. Maps of the layers of lowest or highest entropy, or of no layer, are replaced
in all steps.

Measured by the world's reader of clips, which the tests check on drawn ones. obeys: share of thing, colour, background
and motion that are as the prompt says. moves: clips that move as it says. form: how well the thing covers the ideal one
closest to it (intersection over union). ssim: of neighbouring frames. kept: overlap of the thing in the edited clip and
in its source, on average over frames. 95% bootstrap intervals over prompts; differences are taken prompt by prompt.
FOLDER keeps what was measured and drawn: an interrupted study goes on where it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from claims import Claim
from figures import claims_table, means, publish, rows_chart, sheet
from harness import Demo, Json, Records, command_line, enter, pack, strip
from power import worth
from torch import Tensor
from ways import Subject

NAME = "transformer_study"
CFG, HIGHER = 3.0, 5.0
FRAMES, SHAPE = 17, (1, 16, 5, 16, 16)
PLAIN, MORE_CFG, MORE_STEPS = "plain CFG", f"CFG {HIGHER:g}", "half as many steps again"
ENTROPY, SWEPT = "highest entropy", "most damage"
PAIRS = ("A-I", "U-A", "U-I")
GUIDED = {
    **{name: (ENTROPY, name, 2.0) for name in (*PAIRS, "strategy 1", "strategy 3", "strategy 4")},
    **{f"{name}, {SWEPT}": (SWEPT, name, 0.5) for name in ("A-I", "U-I")},
}
"""Name → by what the layer is chosen, guidance, and λ."""
NOTHING = "nothing replaced"
EDITED = {
    f"{select} {percent}%": (select, percent)
    for select, percent in (("lowest", 25), ("lowest", 50), ("lowest", 100), ("highest", 50))
}
"""Name → which layers' maps are replaced."""
FEW_AND_ALL = "lowest 25%", "lowest 100%"
KINDS = {"guidance": (PLAIN, MORE_CFG, MORE_STEPS, *GUIDED), "editing": (NOTHING, *EDITED)}
"""What is done, and in which ways; the first is what the others are compared with."""
SHOWN = {
    "guidance": (PLAIN, MORE_CFG, "A-I", "U-I", f"U-I, {SWEPT}"),
    "editing": ("source", NOTHING, "lowest 25%", "lowest 100%", "highest 50%"),
}
"""On the sheet, of the first prompts of either kind."""
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "moves": ("moves as said", ".1%"),
    "form": ("form", ".3f"),
    "ssim": ("SSIM of neighbours", ".4f"),
}
KEPT = {"obeys": MEASURES["obeys"], "iou": ("kept", ".3f"), "ssim": MEASURES["ssim"]}
SWEEP = "sweep"
"""The key of the record of the layer that does the most damage."""


@dataclass(frozen=True)
class Asked:
    """A moving scene, what it becomes in an edit, the model that is asked, and the noise of all ways."""

    moving: Any
    target: Any
    prompts: tuple[str, str]
    subject: Subject
    noise: Any


class Transformer(Demo):
    """The demo's video transformer."""

    def __init__(self) -> None:
        world = pack("demo.world.model")
        self.model, self.text, self.vae = world.load_transformer(), world.load_clip(), world.load_clip_vae()

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)[0].float().cpu().clamp(0, 1)

    def ask(self, number: int, steps: int) -> Asked:
        motion, rng = pack("demo.world.motion"), random.Random(number)
        moving = motion.random_moving_scene(rng, backgrounds=0.0, fills=0.0)
        target = recoloured(moving, rng)
        source, edited = (motion.moving_caption(each, random.Random(number)) for each in (moving, target))
        how = (self.encode(source), self.encode(edited), self.encode(""), self.sigmas(steps, "simple"), CFG, SHAPE)
        subject = Subject(self.model, *how, draws_pictures=False)
        return Asked(moving, target, (source, edited), subject, subject.noise(number))

    def sweep(self, steps: int) -> Json:
        """The layer that does the most damage, on the first prompt."""
        of, node = self.ask(0, steps), pack("nodes.layer_sweep").LayerSweep
        run = of.subject.positive, of.subject.negative, of.noise, _euler(), of.subject.sigmas, of.subject.empty
        how = {"perturbation": "identity", "score": "change", "kind": "all", "cfg": CFG}
        swept, _, report = node.execute(self.model, *run, self.vae, **how).args
        return {"layer": swept.selector, "report": json.loads(report)}

    def guidance(self, of: Asked, steps: int, swept: str) -> Iterator[tuple[str, Tensor]]:
        """The clip of every way."""
        subject = of.subject
        (chosen,) = pack("nodes.entropy_register").SelectAttentionLayers.execute(self.model, swept).args
        registries = {ENTROPY: subject.highest, SWEPT: chosen}
        longer = self.sigmas(steps + steps // 2, "simple")
        controls = {PLAIN: subject, MORE_CFG: replace(subject, cfg=HIGHER), MORE_STEPS: replace(subject, sigmas=longer)}
        for way, asked in controls.items():
            yield way, self.decode(asked.sample(self.model, of.noise))
        for way, (by, guidance, scale) in GUIDED.items():
            guided = subject.guided_by(guidance, scale, registries[by])
            yield way, self.decode(subject.sample(guided, of.noise))

    def editing(self, of: Asked) -> Iterator[tuple[str, Tensor]]:
        """The source, and its edit in every way."""
        reselect = pack("nodes.entropy_register").ReselectAttentionLayers.execute
        for way in KINDS["editing"]:
            select, percent = EDITED.get(way, ("lowest", 100))
            registry = reselect(of.subject.highest, "all", select, 0, float(percent)).args[0]
            span = {"end_percent": 0.0} if way == NOTHING else {}
            edited, source = of.subject.edit(registry, noise=of.noise, **span)
            if way == NOTHING:
                yield "source", self.decode(source)
            yield way, self.decode(edited)


def _euler() -> Any:
    from comfy.samplers import sampler_object

    return sampler_object("euler")


def recoloured(moving: Any, rng: random.Random) -> Any:
    """The same, with a thing of another colour."""
    scenes = pack("demo.world.scenes")
    (thing,) = moving.scene.things
    taken = (thing.surface.colour, moving.scene.background.colour)
    colour = rng.choice([name for name in scenes.COLOURS if name not in taken])
    thing = replace(thing, surface=scenes.Surface(colour))
    return replace(moving, scene=replace(moving.scene, things=(thing,)))


def covers(frames: Tensor, moving: Any) -> Tensor:
    """(F, H, W), where something is not of the background's colour."""
    colour = torch.tensor(pack("demo.world.scenes").COLOURS[moving.scene.background.colour])
    return (frames - colour).abs().amax(-1) > 0.25


def measure(frames: Tensor, moving: Any, source: Tensor | None = None) -> dict[str, float]:
    """Figures of a clip (F, 128, 128, 3) that should show ``moving``; ``source``: the clip that it was edited from."""
    evaluation, similarity = pack("demo.world.clip_evaluation"), pack("metrics.similarity")
    reading = pack("demo.world.clip_reader").read_clip(frames)
    correct = evaluation.SeenClip(frames, "", moving, reading).correct
    overlaps = [each.overlap for each in reading.forms] if reading else []
    figures = {
        "obeys": sum(correct.values()) / len(correct),
        "moves": float(correct["motion"]),
        "form": sum(overlaps) / len(frames),
        "ssim": similarity.ssim(frames[1:], frames[:-1]).mean().item(),
    }
    if source is not None:
        figures["iou"] = similarity.iou(covers(frames, moving), covers(source, moving)).nan_to_num(0.0).mean().item()
    return figures


def record(model: Transformer, folder: Path, kind: str, number: int, steps: int, swept: str) -> Json:
    """Figures of a prompt's clip in every way; the clips stay in ``folder``."""
    of, drawn = model.ask(number, steps), dict[str, Tensor]()
    for way, clip in model.editing(of) if kind == "editing" else model.guidance(of, steps, swept):
        drawn[way] = strip(folder / f"{way}.png", lambda clip=clip: clip, FRAMES)
    source = drawn.pop("source", None)
    meant = of.moving if source is None else of.target
    ways = {way: measure(clip, meant, source) for way, clip in drawn.items()}
    layers = {ENTROPY: of.subject.highest.selector, SWEPT: swept}
    return {"kind": kind, "prompts": of.prompts, "layers": layers, "ways": ways}


def values(records: list[Json], way: str, name: str) -> Tensor:
    """A figure of every prompt."""
    return torch.tensor([each["ways"][way][name] for each in records], dtype=torch.float64)


def gain(records: list[Json], other: str, way: str, name: str) -> Tensor:
    """Of a way over another one, prompt by prompt."""
    return values(records, way, name) - values(records, other, name)


def claims(records: list[Json]) -> list[Claim]:
    """Of the paper; beside them, guidances at the layer that does the most damage, and against more CFG."""
    of = {kind: [each for each in records if each.get("kind") == kind] for kind in KINDS}
    found = []
    if of["guidance"]:
        say = partial(_claim, of["guidance"], MEASURES)
        for way, (by, guidance, _) in GUIDED.items():
            if guidance in PAIRS:
                text = f"[{guidance.replace('-', ' − ')}] improves clips of a video transformer"
                names = ("obeys", "form", "moves")
                found += [say("table 2", text, way, PLAIN, name, is_papers=by == ENTROPY) for name in names]
                text = f"{way} obeys more than CFG {HIGHER:g}, on a video transformer"
                found.append(say("table 2", text, way, MORE_CFG, "obeys", is_papers=False))
        text = "IE-Adapt’s clips of a video transformer are more consistent from frame to frame than plain CFG’s"
        found.append(say("table 1", text, "U-I", PLAIN, "ssim"))
        for better, worse in (("strategy 3", "A-I"), ("strategy 4", "A-I"), ("A-I", "strategy 1")):
            text = f"{better[0].upper()}{better[1:]} is better than {worse} on a video transformer"
            found.append(say("table 4", text, better, worse, "obeys"))
    if of["editing"]:
        say = partial(_claim, of["editing"], KEPT)
        half, where = "lowest 50%", "on a video transformer"
        found += [
            say("§4.2", f"Replaced maps of low entropy keep the structure {where}", half, NOTHING, "iou"),
            say("§4.2", f"Maps of low entropy hold more of it than those of high {where}", half, "highest 50%", "iou"),
            say("table 3", f"Replaced maps are steadier than none {where}", half, NOTHING, "ssim"),
            say("table 5", f"The fewer are replaced, the closer to the text {where}", *FEW_AND_ALL, "obeys"),
            say("table 5", f"The more are replaced, the steadier {where}", *FEW_AND_ALL[::-1], "ssim"),
        ]
    return found


def _claim(of: list[Json], titles: Any, where: str, text: str, way: str, other: str, name: str, **more: Any) -> Claim:
    title, form = titles[name]
    more = {"unit": "prompts", "worth": worth("obeys" if name == "moves" else name), **more}
    return Claim.of(where, text, f"{title}, {way} less {other}", gain(of, other, way, name), "+" + form, 1, **more)


def main() -> None:
    parser = command_line(__doc__, "minutes", "publish", clips=(24, "prompts of each kind"), steps=(16, "of sampling"))
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    out, steps = arguments.out, arguments.steps
    weights = pack("demo.world.model").WEIGHTS / "world_transformer.safetensors"
    kept = Records(out, {"steps": steps, "cfg": CFG, "weights": pack("demo.gates").digest(weights)})
    with torch.inference_mode():
        model = Transformer()
        (sweep,) = kept.take([(SWEEP, partial(model.sweep, steps))], 0)
        keys = {f"{kind} {n:02}": (kind, n) for n in range(arguments.clips) for kind in KINDS}
        wanted = ((key, partial(record, model, out / key, *each, steps, sweep["layer"])) for key, each in keys.items())
        records = list(kept.take(wanted, arguments.minutes))
    tables, chart, blocks = [], None, []
    for kind, (first, *others) in KINDS.items():
        of = [each for each in records if each["kind"] == kind]
        if not of:
            continue
        measures = KEPT if kind == "editing" else MEASURES
        head = f"**{kind.capitalize()}** ({len(of)} prompts{_layers(of, sweep['layer']) if kind == 'guidance' else ''})"
        differences = means(others, measures, partial(gain, of, first), f"less {first}", gains=True)
        tables.append(f"{head}\n\n{means([first], measures, partial(values, of))}\n\n{differences}")
        for each in of[:2]:  # whatever they look like
            drawn = {way: strip(out / each["key"] / f"{way}.png", frames=FRAMES)[::4] for way in SHOWN[kind]}
            blocks.append((f"“{each['prompts'][kind == 'editing']}”", drawn))
        if kind == "guidance":
            title, subtitle = "Guidance on a video transformer", "Differences from plain CFG, with 95% intervals."
            chart = rows_chart(title, subtitle, others, measures, {kind: partial(gain, of, first)}, zero=True)
    text = "\n\n".join([*tables, claims_table(claims(records))])
    print(publish(NAME, out, arguments.publish, text, chart, sheet(blocks)))


def _layers(records: list[Json], swept: str) -> str:
    highest = ", ".join(f"`{name}`" for name in sorted({record["layers"][ENTROPY] for record in records}))
    return f"; {ENTROPY}: {highest}; {SWEPT}: `{swept}`"


if __name__ == "__main__":
    main()
