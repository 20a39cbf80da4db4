"""The field's methods for editing a clip without training, side by side on one footing.

    python benchmarks/methods_study.py --comfyui DIR [--kind KIND] [--clips 12] [--frames 8] [--out FOLDER] [--publish]

The clips, prompts and guidance of ``editing_study.py --kind peers``: rendered clips that the demo model has not
seen, one DDIM inversion for all, then another colour, another shape, or both. Each method is used as its paper has it,
as far as this model goes (``WAYS``). PnP ends at 0.8 of sampling, the paper's value for features; TokenFlow, VidToMe
and FLATTEN stand above it, as in their authors' code. vid2vid-zero has a null-text inversion of its own. RAVE stands
above ControlNets in its paper, and Text2Video-Zero above its motion field; this model has no ControlNet, and the
inverted noise brings the motion, so here they are the grid and the attention to the first frame alone. FlowEdit inverts
nothing.

With ``--kind adapters`` the four methods of GE-Adapter's Tables 1 and 2 are run without and with its adapter (LoRA,
shared and per-frame tokens) and without and with its bilateral inversion. There vid2vid-zero has neither null text,
which would replace the inversion, nor aligned words, as tokens go before the prompt.

Measured: the share of the target prompt that frames obey; the shape's overlap with the ideal edit (IoU); PSNR of what
is background in both; SSIM of neighbouring frames; the error of neighbouring frames along the given clip's own motion;
the time of a step in that of a plain edit, clip by clip, and the tensors that live at once in the first two steps.
Neither counts what goes before sampling. 95% bootstrap intervals over clips. The sheet shows the first clips, whatever
they look like. FOLDER keeps what was measured and drawn: an interrupted study goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from claims import Claim
from editing_study import CFG, HALF, MEASURES, SKIPPED, Bench, Clip, measure
from figures import claims_table, means, publish, rows_chart, sheet
from ge_adapter_study import STRENGTH, Study
from harness import Json, Records, command_line, enter, guided, now, pack, peak_of, strip
from torch import Tensor

ALL = {name: MEASURES[name] for name in ("fidelity", "form", "background", "consistency")} | {
    "warped": ("error along the clip’s motion (10⁻³)", ".2f"),
    "time": ("time of a step (plain edit: 1)", ".2f"),
    "memory": ("memory of a step (MiB)", ".1f"),
}
PLAIN = "plain edit"
MEMORY = "memory"
"""The key of the record of it."""
SHOWN = 3
"""Clips on the sheet: one of each change."""
INFERENCE = 0.1
"""The share of sampling in which the adapter's LoRA is in the model: the paper's."""


def node(file: str, name: str, **inputs: Any) -> Callable[[Any, Clip], Any]:
    """What puts a node of the pack on a model."""
    return lambda model, _: getattr(pack(f"nodes.{file}"), name).execute(model, **inputs).args[0]


def _along_flow(model: Any, clip: Clip) -> Any:
    return pack("nodes.flow_attention").FlowAttention.execute(model, clip.frames).args[0]


NODES = {
    "PnP": node("plug_and_play", "PlugAndPlay", end_percent=0.8),
    "TokenFlow": node("token_flow", "TokenFlow", chunk=4),
    "VidToMe": node("vidtome", "VidToMe"),
    "RAVE": node("rave", "RAVEGrid", grid=2),
    "FLATTEN": _along_flow,
    "first and previous": node("cross_frame", "CrossFrameAttention", keys="first_and_previous"),
    # the authors' 100 is for latents of 4 × 64 × 64
    "update": node("pix2video", "Pix2VideoGuidance", scale=100 * (16 / 64) ** 2),
    "all frames": node("cross_frame", "CrossFrameAttention", keys="all"),
    "first frame": node("cross_frame", "CrossFrameAttention", keys="first"),
    "momentum": node("momentum", "TemporalMomentumAttention", mu=0.98),
}


@dataclass(frozen=True)
class Way:
    """A method: ``nodes`` on the model; ``edit``: how the source goes along, None where the target is drawn alone;
    ``peer``: an edit of ``editing_study.py`` by its name, instead."""

    nodes: tuple[str, ...] = ()
    edit: Json | None = None
    peer: str = ""
    null_text: bool = False


PINNED: Json = {"layers": "", "pinned": True}
WAYS = {
    PLAIN: Way(),
    "IE-Adapt": Way(peer=f"maps, {HALF}, pinned"),
    "P2P": Way(peer="P2P, aligned, pinned"),
    "FateZero": Way(peer="FateZero"),
    "PnP": Way(("PnP",), PINNED),
    "TokenFlow": Way(("PnP", "TokenFlow"), PINNED),
    "VidToMe": Way(("PnP", "VidToMe"), PINNED),
    "FLATTEN": Way(("PnP", "FLATTEN"), PINNED),
    "RAVE": Way(("RAVE",)),
    "Pix2Video": Way(("first and previous", "update")),
    "vid2vid-zero": Way(("all frames",), {"layers": "", "replace": "cross_map", "aligned": True}, null_text=True),
    "Text2Video-Zero": Way(("first frame",)),
    "ZS²": Way(("momentum",)),
    "FlowEdit": Way(peer="FlowEdit"),
}
"""Of ``--kind methods``. Momentum is ZS²'s attention; its noise has no place after an inversion."""
OF_TABLES = {
    "TokenFlow": WAYS["TokenFlow"],
    "VidToMe": WAYS["VidToMe"],
    "vid2vid-zero": Way(("all frames",), {"layers": "", "replace": "cross_map"}),
    "Text2Video-Zero": WAYS["Text2Video-Zero"],
}
ADDED = {"": (), "adapter": ("adapter",), "bilateral": ("bilateral",), "both": ("adapter", "bilateral")}
"""Of ``--kind adapters``."""


def named(method: str, added: str) -> str:
    return f"{method}, {added}" if added else method


@dataclass(frozen=True)
class Run:
    """What samples a clip along some noise levels, and gives the target's latents."""

    sample: Callable[[Tensor], Tensor]
    steps: int


class Methods:
    """The clips, and the runs of every method on one of them. ``adapters``: of ``--kind adapters``, trained before."""

    def __init__(self, kind: str, frames: int, steps: int, adapters: Study | None = None, adapter: Any = None) -> None:
        self.kind, self.steps, self.bench = kind, steps, Bench("peers", frames)
        self.bench.schedule = self.bench.sigmas(steps)
        self._study, self._adapter = adapters, adapter

    def clip(self, seed: int) -> Clip:
        return self.bench.clip("rendered", seed)

    def runs(self, clip: Clip, names: Iterable[str] = ()) -> dict[str, Run]:
        """By name; those of ``names``, or all."""
        if self.kind == "adapters":
            clean = self.bench.vae.encode(clip.frames)
            clips = {"": clip, "bilateral": self.bench.inverted(clip, clean, "latent_spatial")}
            of = {
                named(method, added): (way, clips["bilateral" if "bilateral" in parts else ""], "adapter" in parts)
                for (method, way), (added, parts) in product(OF_TABLES.items(), ADDED.items())
            }
            of = {PLAIN: (WAYS[PLAIN], clip, False), **of}
        else:
            of = {name: (way, clip, False) for name, way in WAYS.items()}
        peers = dict(self.bench.ways(clip)) if any(way.peer for way, *_ in of.values()) else {}
        return {name: self._run(*each, peers) for name, each in of.items() if not names or name in names}

    def _run(self, way: Way, clip: Clip, is_adapted: bool, peers: dict[str, Json]) -> Run:
        bench, edit = self.bench, peers[way.peer] if way.peer else way.edit
        if edit and "flow" in edit:
            return Run(lambda _: bench.flow_edit(clip, edit["layers"]), self.steps - round(SKIPPED * self.steps))
        model, tokens = bench.model, list
        for name in way.nodes:
            model = NODES[name](model, clip)
        if is_adapted:
            assert self._study is not None
            model, tokens = self._study.with_adapter(self._adapter, INFERENCE, clip.frames, model)
        if edit is None:
            prompts = [tokens(bench.encode(prompt)) for prompt in (clip.prompts[1], "")]
            start = clip.latent["samples"]
            return Run(lambda sigmas: guided(model, torch.zeros_like(start), start, sigmas, *prompts, CFG), self.steps)
        negative = None
        if way.null_text:
            clip, negative = self._null_text(model, clip)
            edit = {**edit, "source_cfg": CFG}
        return Run(lambda sigmas: bench.edit_latents(clip, edit, sigmas, model, tokens, negative)[0], self.steps)

    def _null_text(self, model: Any, clip: Clip) -> tuple[Clip, list]:
        """The clip from an inversion of its own, and the negative of every step."""
        bench, clean = self.bench, {"samples": self.bench.vae.encode(clip.frames)}
        prompts = (bench.encode(clip.prompts[0]), bench.encode(""))
        settings = {"inner_steps": 3, "learning_rate": 0.03, "refine_iterations": 1}
        invert = pack("nodes.null_text").NullTextInvert.execute
        negative, latent, *_ = invert(model, *prompts, CFG, clean, bench.schedule, **settings).args
        return replace(clip, latent=latent), negative


def record(methods: Methods, folder: Path, seed: int) -> Json:
    """Figures of one clip edited by every method; its frames stay in ``folder``."""
    clip, bench, ways = methods.clip(seed), methods.bench, {}
    agreement = pack("metrics.consistency").agreement
    for name, run in methods.runs(clip).items():
        began = now()
        latents = run.sample(bench.schedule)
        seconds = (now() - began) / run.steps
        frames = bench.decode(latents)
        strip(folder / f"{name}.png", lambda frames=frames: frames)
        moved = agreement(frames, clip.frames).warped_error.nanmean().item()
        ways[name] = {**measure(frames, clip), "warped": 1000 * moved, "seconds": seconds}
    strip(folder / "source.png", lambda: clip.frames)
    return {"seed": seed, "prompts": clip.prompts, "ways": ways}


def memory(methods: Methods) -> Json:
    """MiB of the tensors that live at once in the first two steps of every method."""
    first, runs = methods.bench.schedule[:3], methods.runs(methods.clip(0))
    runs[PLAIN].sample(first)  # loads the model
    return {"MiB": {name: peak_of(partial(run.sample, first)) for name, run in runs.items()}}


def values(records: list[Json], way: str, name: str) -> Tensor:
    """A figure of every clip; time is in that of the plain edit."""
    if name == "memory":
        return torch.tensor([record["MiB"][way] for record in records if record["key"] == MEMORY])
    clips = [record["ways"] for record in records if record["key"] != MEMORY]
    if name == "time":
        return torch.tensor([ways[way]["seconds"] / ways[PLAIN]["seconds"] for ways in clips])
    return torch.tensor([ways[way][name] for ways in clips], dtype=torch.float64)


def gain(records: list[Json], way: str, other: str, name: str) -> Tensor:
    return values(records, way, name) - values(records, other, name)


def _claim(records: list[Json], where: str, text: str, way: str, other: str, name: str, sign: int = 1) -> Claim:
    title, form = ALL[name]
    figure = f"{title}, “{way}” less “{other}”"
    return Claim.of(where, text, figure, gain(records, way, other, name), "+" + form, sign)


def claims(records: list[Json]) -> list[Claim]:
    """What the papers say of their methods, against the plain edit and what they stand above."""
    say = partial(_claim, records)
    return [
        say("2211.12572", "PnP keeps the layout better than a plain edit", "PnP", PLAIN, "form"),
        say("2307.10373", "TokenFlow is steadier than PnP frame by frame", "TokenFlow", "PnP", "consistency"),
        say("2307.10373", "TokenFlow follows the clip's motion better than PnP", "TokenFlow", "PnP", "warped", -1),
        say("2312.10656", "VidToMe is steadier than PnP frame by frame", "VidToMe", "PnP", "consistency"),
        say("2310.05922", "FLATTEN follows the clip's motion better than PnP", "FLATTEN", "PnP", "warped", -1),
        say("2303.12688", "Pix2Video is steadier than a plain edit", "Pix2Video", PLAIN, "consistency"),
        say("2303.17599", "vid2vid-zero keeps the form better than a plain edit", "vid2vid-zero", PLAIN, "form"),
        say("2303.13439", "Attention to the first frame is steadier", "Text2Video-Zero", PLAIN, "consistency"),
        say("2312.04524", "Shuffled grids are steadier", "RAVE", PLAIN, "consistency"),
        say("2303.09535", "FateZero keeps the form better than a plain edit", "FateZero", PLAIN, "form"),
        say("2412.08629", "FlowEdit keeps the form better than inverting", "FlowEdit", PLAIN, "form"),
    ]


def claims_of_adapters(records: list[Json]) -> list[Claim]:
    """GE-Adapter's Tables 1 and 2: each of its parts in each method."""
    say, found = partial(_claim, records), []
    for added, where, what in (("adapter", "table 1", "The adapter"), ("bilateral", "table 2", "Its inversion")):
        for method, (name, gives) in product(
            OF_TABLES, (("fidelity", "closer to the text"), ("consistency", "more consistent"))
        ):
            text = f"{what} makes {method} {gives}"
            found.append(say(where, text, named(method, added), named(method, ""), name))
    return found


def trained(out: Path, frames: int, steps: int, clips: int) -> tuple[Study, Any]:
    """An adapter as ``ge_adapter_study.py`` trains it; from ``out``, where it is there."""
    file, study = pack("files.ge_adapter_file"), Study(frames, steps, clips, ["adapter"])
    path = out / f"adapter{file.SUFFIX}"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        file.save(study.adapters["adapter"], path)
    return study, file.load(path)


def main() -> None:
    parser = command_line(
        __doc__,
        "minutes",
        "publish",
        clips=(12, "clips that are measured, at most"),
        frames=(8, "of a clip, a multiple of 4"),
        steps=(8, "of sampling"),
        trained=(400, "steps, the adapter"),
        trained_on=(24, "clips that the adapter is trained on"),
    )
    parser.add_argument("--kind", choices=("methods", "adapters"), default="methods", help="what is compared")
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    kind, out, has_adapters = arguments.kind, arguments.out, arguments.kind == "adapters"
    settings: Json = {"kind": kind, "frames": arguments.frames, "steps": arguments.steps, "cfg": CFG}
    if has_adapters:
        settings |= {"trained": arguments.trained, "on": arguments.trained_on, "strength": STRENGTH}
    kept = Records(out, settings)
    with torch.inference_mode():
        made = trained(out, arguments.frames, arguments.trained, arguments.trained_on) if has_adapters else ()
        methods = Methods(kind, arguments.frames, arguments.steps, *made)
        keys = {f"{seed:02}": partial(record, methods, out / f"{seed:02}", seed) for seed in range(arguments.clips)}
        records = list(kept.take([(MEMORY, partial(memory, methods)), *keys.items()], arguments.minutes))
    clips = [each for each in records if each["key"] != MEMORY]
    if not clips:
        raise SystemExit("Only memory was measured. Give it more --minutes, or run it again: it goes on from there.")
    ways, of = list(clips[0]["ways"]), partial(values, records)
    about = f"{len(clips)} clips of {arguments.frames} frames, {arguments.steps} steps"
    if has_adapters:
        about += f"; an adapter of {arguments.trained} training steps"
    found = (claims_of_adapters if has_adapters else claims)(records)
    text = f"**{about}**\n\n{means(ways, ALL, of, 'method')}\n\n{claims_table(found)}"
    title = "GE-Adapter inside other methods" if has_adapters else "Editing a clip without training"
    subtitle = f"Means with 95% intervals, {about}. Error, time and memory: lower is better; all else: higher."
    chart = rows_chart(title, subtitle, ways, ALL, {"": of})
    blocks = []
    for each in clips[:SHOWN]:
        drawn = {name: strip(out / each["key"] / f"{name}.png") for name in ("source", *ways)}
        blocks.append(("“{}”\n→ “{}”".format(*each["prompts"]), drawn))
    name = "methods_study" + "_adapters" * has_adapters
    print(publish(name, out, arguments.publish, text, chart, sheet(blocks, side=72)))


if __name__ == "__main__":
    main()
