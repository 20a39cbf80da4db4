"""IE-Adapt's tables 3 and 5 at toy scale: which layers to replace, and what of them, when a clip is edited.

    python benchmarks/editing_study.py --comfyui DIR [--kind KIND] [--clips 12] [--frames 4] [--out FOLDER] [--publish]

Two kinds of clips. *Rendered*: shapes that slide, turn and grow, which the demo model has never seen (it learned from
single upright pictures), inverted with plain DDIM inversion, so that the source is a real clip. *Generated*: drawn by
the model from dependency noise, so that its frames differ. Each clip is edited once: another colour, another shape, or
both. Prompts name size and place, as the model lays a picture out anew where they are left open.

With ``--kind video`` the demo's video model draws the clips, from independent noise and prompts that say how the shape
moves; its temporal layers are ranked beside the others. With ``--kind peers`` rendered clips alone are edited as other
papers edit: Prompt-to-Prompt with and without aligned words, FateZero and FlowEdit; where there is an inversion, with
the source where its own sampling goes, and pinned to the clip. Run it with the Python of that ComfyUI.

Measured: the share of the target prompt that frames obey; the shape's overlap with the source's (IoU); PSNR of what is
background in both; SSIM of neighbouring frames; whether a video model's clip moves as its prompts say. Of peers, the
shape's overlap with the ideal edit instead: the same motion, rendered with the target's shape.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from claims import Claim, Use
from figures import claims_table, means, publish, rows_chart, sheet
from harness import Demo, Json, Records, command_line, dependency_noise, empty, enter, obeys, pack, strip
from power import worth
from torch import Tensor

KINDS = {"rendered": "Rendered clips, inverted", "generated": "Clips drawn by the model"}
MEASURES = {
    "fidelity": ("obeys the target prompt", ".1%"),
    "iou": ("shape stays in place (IoU)", ".3f"),
    "form": ("shape of the ideal edit (IoU)", ".3f"),
    "background": ("background kept (PSNR, dB)", ".1f"),
    "consistency": ("SSIM of neighbouring frames", ".3f"),
    "moves": ("moves as the prompts say", ".1%"),
}
STEPS, CFG, KL = {"image": 16, "video": 8, "peers": 16}, 3.0, 0.05
CHANGES = (("colour",), ("shape",), ("colour", "shape"))
TEMPLATE = "a {size} {colour} {shape} {where}, {background} background"
RANKINGS = {f"lowest {percent}%": ("lowest", percent) for percent in (25, 50, 65, 75, 100)}
RANKINGS["highest 50%"] = ("highest", 50)
HALF = "lowest 50%"
_MAPS = ("EntropyGuidedEdit", "replace map, lowest {}%", "Memory of an edit")
USES = {
    ("Replaced maps of low entropy keep the structure", "iou"): Use(
        "an edit that stays in place", _MAPS[0], _MAPS[1].format(50), _MAPS[2]
    ),
    ("The fewer are replaced, the closer to the text", "fidelity"): Use(
        "an edit that obeys its prompt", _MAPS[0], f"{_MAPS[1].format(25)} in the place of all", _MAPS[2]
    ),
}
"""By claim and measure."""
ON_VIDEO = ("lowest 50%", "lowest 75%")
PEERS = {
    f"key_value, {HALF}": "MasaCtrl’s replaced keys and values",
    f"value, {HALF}": "replaced values",
    "cross_map": "P2P’s replaced cross-attention",
}
AS_PEERS: dict[str, Json] = {
    "nothing": {},
    f"maps, {HALF}": {"maps": True},
    f"maps, {HALF}, pinned": {"maps": True, "pinned": True},
    "P2P, by place": {"replace": "cross_map"},
    "P2P, aligned": {"replace": "cross_map", "aligned": True},
    "P2P, aligned, pinned": {"replace": "cross_map", "aligned": True, "pinned": True},
    "P2P and maps, aligned, pinned": {"replace": "map_and_cross", "maps": True, "aligned": True, "pinned": True},
    "FateZero, not pinned": {"replace": "blend", "maps": True, "aligned": True},
    "FateZero": {"replace": "blend", "maps": True, "aligned": True, "pinned": True},
    "FlowEdit": {"flow": True},
    f"FlowEdit, maps, {HALF}": {"flow": True, "maps": True},
}
"""The edits of ``--kind peers``: which layers, what of them, and what the edit is given beside that."""
FLOW = {"source_cfg": 1.5, "target_cfg": 5.5, "averages": 1}
SKIPPED = 3 / 16
"""Of the steps, FlowEdit's."""
ON_SHEET = ("nothing", "lowest 25%", HALF, "lowest 100%", f"key_value, {HALF}", "cross_map")


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
    ideal: Tensor | None = None
    """The mask of the ideal edit."""
    trajectory: Any = None
    """Of the inversion."""


class Bench(Demo):
    """The demo model, and all that an edit needs of the pack."""

    def __init__(self, kind: str, frames: int) -> None:
        super().__init__(kind)
        self.is_video, self.has_peers, self.frames = kind == "video", kind == "peers", frames
        self.schedule = self.sigmas(STEPS[kind])

    def render(self, scene: Any, rng: random.Random, seed: int) -> tuple[Any, Any, str]:
        """The scene's shape in motion, the scene with the size and place that its middle frame shows, the motion."""
        clips = pack("demo.clips")
        motion = rng.choice(clips.MOTIONS)
        rendered = clips.render_clip(scene.shape, scene.colour, scene.background, motion, self.frames, seed)
        seen = pack("demo.reader").read(rendered.frames[self.frames // 2][None]).scenes[0]
        return rendered, replace(scene, size=seen.size, row=seen.row, column=seen.column), motion

    def clip(self, kind: str, seed: int) -> Clip:
        from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise

        shapes, rng = pack("demo.shapes"), random.Random(seed)
        rendered = moving = None
        if self.is_video:
            moving = pack("demo.motion").random_moving_scene(rng)
        scene = moving.scene if moving else shapes.random_scene(rng)
        if kind == "rendered":
            rendered, scene, motion = self.render(scene, rng, seed)
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
        if moving:
            return Clip(*about, Noise_RandomNoise(seed), empty(self.frames), CFG, motion=moving.motion)
        if rendered is None:
            return Clip(*about, dependency_noise(seed, KL), empty(self.frames), CFG)
        clean = self.vae.encode(rendered.frames)
        real = Clip(*about, Noise_EmptyNoise(), {}, 1.0, rendered.frames, rendered.mask > 0.5)
        if not self.has_peers:
            inverted = self.invert(self.model, clean, prompts[0], self.schedule, mode="none", refine_iterations=2)
            return replace(real, latent={"samples": inverted})
        same_way = pack("demo.clips").render_clip(
            target.shape, target.colour, target.background, motion, self.frames, seed
        )
        return self.inverted(replace(real, ideal=same_way.mask > 0.5), clean)

    def inverted(self, clip: Clip, clean: Tensor, mode: str = "none") -> Clip:
        """``clip``, whose latents are ``clean``, with its noise and the way there; ``mode``: of the filter."""
        how = {"mode": mode, "kernel_size": 5, "sigma_spatial": 1.0, "sigma_intensity": 1.0, "filter_until": 0.5}
        start = (self.model, self.encode(clip.prompts[0]), 1.0, {"samples": clean}, self.schedule)
        invert = pack("nodes.inversion").BilateralDDIMInvert.execute
        latent, _, trajectory = invert(*start, **how, restandardise=True, refine_iterations=2).args
        return replace(clip, latent=latent, trajectory=trajectory)

    def ways(self, clip: Clip) -> Iterator[tuple[str, Json]]:
        """Name, and which layers and what of them are replaced."""
        register, measure = pack("attention.registry"), pack("samplers.measure")
        start = measure.Start(self.encode(clip.prompts[0]), clip.noise, self.schedule, clip.latent)
        sites, figures = measure.measure_layers(self.model, start, (0,), "exact", "study")
        measured = register.Measurement((0,), (self.schedule[0].item(),), "exact", clip.seed, (1,))
        if self.has_peers:
            ranking = register.Ranking("all", "lowest", 0, 50)
            half = register.ranked_registry("", "", sites, figures, ranking, measured).selector
            for name, way in AS_PEERS.items():
                yield name, {**way, "layers": half if "maps" in way else ""}
            return
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

    def edit_clip(
        self, clip: Clip, way: Json, model: Any = None, tokens: Callable[[list], list] = list
    ) -> tuple[Tensor, Tensor]:
        """Frames of target and source; ``tokens`` may change what is encoded."""
        if "flow" in way:
            return self.decode(self.flow_edit(clip, way["layers"])), clip.frames
        drawn = self.edit_latents(clip, way, self.schedule, model, tokens)
        return self.decode(drawn[0]), self.decode(drawn[1])

    def edit_latents(
        self,
        clip: Clip,
        way: Json,
        sigmas: Tensor,
        model: Any = None,
        tokens: Callable[[list], list] = list,
        negative: list | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Latents of target and source, along the schedule or its first steps; ``negative``: in the place of the empty
        prompt."""
        prompts = [tokens(self.encode(prompt)) for prompt in (*clip.prompts, "")]
        prompts[2] = negative or prompts[2]
        how = {"cfg": CFG, "source_cfg": clip.source_cfg, **way}
        how.pop("maps", None)
        if how.pop("aligned", False):
            aligned = pack("nodes.align_prompts").AlignPrompts.execute(self.text, *clip.prompts).args
            prompts[:2], how["alignment"] = aligned[:2], aligned[2]
        if how.pop("pinned", False):
            how["trajectory"] = clip.trajectory
        return self.edit(model or self.model, prompts, (clip.noise, sigmas, clip.latent), **how)

    def flow_edit(self, clip: Clip, layers: str) -> Tensor:
        """Latents by FlowEdit, on the demo model read as a flow model."""
        from comfy.samplers import calculate_sigmas

        flow, editing = pack("samplers.flow_edit"), pack("samplers.editing")
        model = pack("demo.flow").as_flow(self.model)
        steps = len(self.schedule) - 1
        sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        prompts = editing.Prompts(*(self.encode(prompt) for prompt in (*clip.prompts, "")))
        how = flow.FlowEdit(**FLOW, skip_steps=round(SKIPPED * steps), seed=clip.seed)
        latent = {"samples": self.vae.encode(clip.frames)}
        return flow.edit_flow(model, prompts, how, sigmas, latent, layers, "study")


def measure(frames: Tensor, clip: Clip) -> dict[str, float]:
    """Figures of an edited clip (F, 128, 128, 3); ``clip`` has frames and mask."""
    reader, similarity = pack("demo.reader"), pack("metrics.similarity")
    mask = reader.shape_mask(frames)
    place = ("iou", clip.mask) if clip.ideal is None else ("form", clip.ideal)
    figures = {
        "fidelity": obeys(frames, clip.target, ("colour", "shape", "background")).mean().item(),
        place[0]: similarity.iou(mask, place[1]).mean().item(),
        "background": similarity.psnr(frames, clip.frames, ~(mask | clip.mask)).nanmean().item(),
        "consistency": similarity.ssim(frames[1:], frames[:-1]).mean().item(),
    }
    if clip.motion:
        figures["moves"] = float(pack("demo.motion_reader").read_motion(frames).motion == clip.motion)
    return figures


def record(bench: Bench, folder: Path, kind: str, seed: int) -> Json:
    """Figures of one clip edited in every way; its frames stay in ``folder``."""
    clip, ways, layers = bench.clip(kind, seed), {}, {}
    for name, way in bench.ways(clip):
        edited, source = bench.edit_clip(clip, way)
        if clip.frames is None:  # the model has just drawn it
            clip = replace(clip, frames=source, mask=pack("demo.reader").shape_mask(source))
        strip(folder / f"{name}.png", lambda edited=edited: edited)
        ways[name], layers[name] = measure(edited, clip), way["layers"]
    strip(folder / "source.png", lambda: clip.frames)
    return {"kind": kind, "prompts": clip.prompts, "seed": seed, "ways": ways, "layers": layers}


def values(records: list[Json], way: str, name: str) -> Tensor:
    return torch.tensor([record["ways"][way][name] for record in records])


def claims(records: list[Json]) -> list[Claim]:
    """Rendered and generated clips together."""

    def claim(where: str, text: str, way: str, other: str, name: str) -> Claim:
        title, form = MEASURES[name]
        gain = values(records, way, name) - values(records, other, name)
        how = {"worth": worth(name), "use": USES.get((text, name))}
        return Claim.of(where, text, f"{title}, {way} less {other}", gain, "+" + form, 1, **how)

    return [
        claim("§4.2", "Replaced maps of low entropy keep the structure", HALF, "nothing", "iou"),
        claim("§4.2", "Maps of low entropy hold more of it than those of high", HALF, "highest 50%", "iou"),
        claim("table 5", "The fewer are replaced, the closer to the text", "lowest 25%", "lowest 100%", "fidelity"),
        claim("table 5", "The more are replaced, the steadier", "lowest 100%", "lowest 25%", "consistency"),
        *(
            claim("table 3", f"Replaced maps are {what} than {peer}", HALF, way, name)
            for (way, peer), (name, what) in product(
                PEERS.items(), (("fidelity", "closer to the text"), ("consistency", "steadier"))
            )
        ),
    ]


def claims_of_peers(records: list[Json]) -> list[Claim]:
    """Of the edits that were measured."""

    def claim(text: str, way: str, other: str, name: str) -> Claim | None:
        if not {way, other} <= records[0]["ways"].keys():
            return None
        title, form = MEASURES[name]
        gain = values(records, way, name) - values(records, other, name)
        least = worth("psnr" if name == "background" else name)
        return Claim.of("ours", text, f"{title}, {way} less {other}", gain, "+" + form, 1, worth=least)

    asked = [
        claim("A pinned source keeps more of the background", f"maps, {HALF}, pinned", f"maps, {HALF}", "background"),
        claim("Aligned words obey better than those by place", "P2P, aligned", "P2P, by place", "fidelity"),
        claim("FateZero's blend obeys better than all maps", "FateZero", f"maps, {HALF}, pinned", "fidelity"),
        claim("FlowEdit obeys better than replaced maps", "FlowEdit", f"maps, {HALF}", "fidelity"),
        claim("FlowEdit gives the ideal form better", "FlowEdit", f"maps, {HALF}", "form"),
        claim("Maps hold FlowEdit's background", f"FlowEdit, maps, {HALF}", "FlowEdit", "background"),
    ]
    return [each for each in asked if each]


def main() -> None:
    parser = command_line(
        __doc__,
        "minutes",
        "publish",
        clips=(12, "clips of each kind"),
        frames=(4, "the video model learned from clips of 16"),
    )
    parser.add_argument("--kind", choices=list(STEPS), default="image", help="a demo model, or what is compared")
    arguments = parser.parse_args()
    enter(arguments)
    is_video, has_peers, out = arguments.kind == "video", arguments.kind == "peers", arguments.out
    kept = Records(out, {"kind": arguments.kind, "frames": arguments.frames, "steps": STEPS, "cfg": CFG, "kl": KL})
    bench = Bench(arguments.kind, arguments.frames)
    wanted = (
        (f"{kind} {seed:02}", partial(record, bench, out / f"{kind} {seed:02}", kind, seed))
        for seed in range(arguments.clips)
        for kind in (["generated"] if is_video else ["rendered"] if has_peers else KINDS)
    )
    with torch.inference_mode():
        records = list(kept.take(wanted, arguments.minutes))
    of = {kind: [each for each in records if each["kind"] == kind] for kind in KINDS}
    of = {kind: each for kind, each in of.items() if each}
    ways = records[0]["ways"]
    measures = {name: MEASURES[name] for name in next(iter(ways.values()))}
    text = "\n\n".join(
        f"**{KINDS[kind]}** ({len(each)} clips)\n\n{means(ways, measures, partial(values, each), 'replaced')}"
        for kind, each in of.items()
    )
    if not is_video:
        text += f"\n\n{claims_table((claims_of_peers if has_peers else claims)(records))}"
    chart = rows_chart(
        "What an edit obeys, and what it keeps",
        "Means with 95% intervals. Right is better; a clip that moves has less SSIM.",
        list(ways),
        measures,
        {KINDS[kind]: partial(values, each) for kind, each in of.items()},
    )
    blocks = []
    # the first ones, whatever they look like
    for each in records[:3] if has_peers else [each[0] for each in of.values()]:
        shown = ["source", *(way for way in (ways if has_peers else ON_SHEET) if way in ways)]
        drawn = {name: strip(out / each["key"] / f"{name}.png") for name in shown}
        blocks.append(("“{}”\n→ “{}”".format(*each["prompts"]), drawn))
    name = "editing_study" + "_video" * is_video + "_peers" * has_peers
    print(publish(name, out, arguments.publish, text, chart, sheet(blocks, side=72 if has_peers else 96)))


if __name__ == "__main__":
    main()
