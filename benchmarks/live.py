"""What it costs to rank layers anew at each step: runs by a live registry beside the same by a fixed one.

    python benchmarks/live.py --comfyui DIR [--rounds 5] [--frames 4] [--side 32] [--out FOLDER] [--publish]

On the demo model and on a tiny Wan (5 M), random weights: guidance, an edit, and a perturbation, each by a fixed
registry, by a live one, and by a live one of single heads. All take turns; ratios are of the fixed one's time in the
same round. A live choice may fall on an earlier layer, which leaves less for copies to share: the column "measuring
alone" is a live registry whose choice is thrown away, so that it acts where the fixed one does.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Cost, Estimate, estimate, shown
from figures import PACK, publish, table
from guidance import keep_memory
from harness import Demo, Json, command_line, enter, pack, save, take_turns
from ways import Subject

NAME = "live_cost"
FIXED, MEASURING, LIVE, HEADS = "fixed", "measuring alone", "live", "live, per head"
STEPS, CFG = 3, 5.0
RUNS = {"guidance": "Guidance U−I", "edit": "An edit", "perturbation": "A perturbation"}
TARGET = 1.15


def demo(frames: int, side: int) -> Subject:
    model = Demo()
    texts = map(model.encode, ("a large red star on a blue background", "a large green star on a blue background", ""))
    return Subject(model.model, *texts, model.sigmas(STEPS), CFG, (frames, 4, side, side))


def wan(folder: Path, frames: int, side: int) -> Subject:
    import comfy.samplers

    sys.path.append(str(PACK / "tests" / "support"))
    from tiny_models import FAMILIES, TinyModels

    model, family = TinyModels(folder).load("wan21"), FAMILIES["wan21"]
    (source, negative), (target, _) = family.conditioning(seed=1), family.conditioning(seed=2)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    return Subject(model, source, target, negative, sigmas, CFG, (1, 16, frames, side, side), False)


def kept_to_the_first(choice: Any) -> Any:
    """A live choice that measures and acts as its first one."""
    live = pack("techniques.choice").Live

    class Kept(live):
        def heads(self, call: Any, position: int) -> Any:
            super().heads(call, position)
            return self.first.get(call.site.name, frozenset())

        def acts_at(self, names: frozenset[str], sigma: float) -> frozenset[str]:
            super().acts_at(names, sigma)
            return names & frozenset(self.first)

    return Kept(choice.number, choice.highest, choice.first, choice.per_head)


def runs_of(subject: Subject, what: str) -> dict[str, Callable[[], Any]]:
    """The same run, by every registry."""
    registry = pack("attention.registry")
    is_edit = what == "edit"
    fixed = subject.lowest if is_edit else subject.highest
    ranking = {"select": "lowest" if is_edit else "highest", "count": 0 if is_edit else 1}

    def ranked(**how: bool) -> Any:
        count = ranking["count"] or (max(each.heads for each in fixed.layers) if how.get("per_head") else 1)
        count = 0 if is_edit else count
        return registry.reselect(fixed, registry.Ranking("all", ranking["select"], count, 50.0, **how))

    found = {FIXED: fixed, LIVE: ranked(live=True), HEADS: ranked(live=True, per_head=True)}
    made = {name: _run(subject, what, each) for name, each in found.items()}
    place, name = {
        "guidance": ("samplers.ie_guidance", "choice_for"),
        "edit": ("nodes.editing", "choice_if_any"),
        "perturbation": ("nodes.perturbation", "choice_for"),
    }[what]
    module = pack(place)
    choose = getattr(module, name)

    def measuring_choice(*how: Any) -> Any:
        layers, choice = choose(*how)
        return layers, kept_to_the_first(choice)

    def measuring() -> None:
        setattr(module, name, measuring_choice)
        try:
            run()
        finally:
            setattr(module, name, choose)

    setattr(module, name, measuring_choice)
    try:
        run = _run(subject, what, found[LIVE])
    finally:
        setattr(module, name, choose)
    made[MEASURING] = measuring  # an edit asks for the choice when it runs, the others before
    return {name: made[name] for name in (FIXED, MEASURING, LIVE, HEADS)}


def _run(subject: Subject, what: str, registry: Any) -> Callable[[], Any]:
    if what == "edit":
        return lambda: subject.edit(registry)
    if what == "guidance":
        model = subject.guided_by("U-I", registry=registry)
    else:
        model = pack("nodes.perturbation").PerturbAttention.execute(subject.model, registry, "uniform").args[0]
    return lambda: subject.sample(model)


def measure(name: str, subject: Subject, what: str, rounds: int) -> Json:
    row = {"model": name, "what": what, "seconds": take_turns(runs_of(subject, what), rounds)}
    print(f"{name}, {what}: {shown(ratio(row, LIVE), '.2f')}", flush=True)
    return row


def ratio(row: Json, way: str) -> Estimate:
    taken, fixed = (torch.tensor(row["seconds"][each], dtype=torch.float64) for each in (way, FIXED))
    return estimate(taken / fixed, np.median)


def tables(results: list[Json]) -> str:
    ways = (MEASURING, LIVE, HEADS)
    rows = [[row["model"], RUNS[row["what"]], *(shown(ratio(row, way), ".2f") for way in ways)] for row in results]
    return table(["model", "run", *ways], rows)


def costs(results: list[Json]) -> list[Cost]:
    return [
        Cost(
            f"{RUNS[row['what']]} by a live registry, {row['model']}, of the same by a fixed one",
            shown(ratio(row, LIVE), ".2f"),
            f"≤ {TARGET}",
            f"measuring alone {ratio(row, MEASURING).value:.2f}",
        )
        for row in results
    ]


def main() -> None:
    parser = command_line(
        __doc__,
        "publish",
        rounds=(5, ""),
        frames=(4, "latent frames of the demo model; Wan has 5"),
        side=(32, "height and width of the latents"),
    )
    parser.add_argument("--runs", nargs="+", choices=[*RUNS], default=[*RUNS], help="of these")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    keep_memory()
    enter(arguments, "pytorch")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        subjects = {
            "demo model": demo(arguments.frames, arguments.side),
            "tiny Wan": wan(Path(folder), 5, arguments.side),
        }
        results: list[Json] = []
        for name, each in subjects.items():
            for what in arguments.runs:
                results.append(measure(name, each, what, arguments.rounds))
                save(arguments.out, results)
    print(publish(NAME, arguments.out, arguments.publish, tables(results)))


if __name__ == "__main__":
    main()
