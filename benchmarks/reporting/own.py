"""What a report of a user's own model runs: a part of ``own_model.py`` each, one after the other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import own_model
import own_parts
from harness import RECORDS, pack
from users_model import DEMOS, UnusableError, size_of

from .experiment import Experiment

if TYPE_CHECKING:
    from .assembling import About, Report

SECTIONS = {
    "model": ("The model", "What the stock loader made of the file", ""),
    "register": ("Its register", "How evenly each attention layer attends (IE-Adapt)", ""),
    "costs": ("What the techniques cost", "Each beside plain sampling", ""),
    "zs2": ("ZS²", "Dependency noise and momentum attention, beside plain sampling", ""),
    "guidance": ("Guidance", "IE-Adapt’s U−I at three scales, beside plain CFG", ""),
    "edit": ("Editing", "IE-Adapt’s edit, beside its source", ""),
}
FILES = ("checkpoint", "vae", "clip", "clip_vision", "video")
_SHEET = {own_model.SHEET: "Frames of every clip, from left to right; the first seeds, unselected."}
_CHART = {own_parts.CHART: "Entropy and energy of every self-attention layer; marked is the highest."}


def options(asked: argparse.Namespace, budget: str) -> tuple[str, ...]:
    """Of ``own_model.py``, all that the user said of his model. UnusableError where a file is not there."""
    words = ["--budget", budget]
    if asked.size:
        size_of(asked.size)
    for name in pack("hosting.report").MODEL_OPTIONS:
        value = getattr(asked, name)
        if value is not None:
            values = map(str, value if isinstance(value, list) else [value])
            words += [f"--{name.replace('_', '-')}", *(_absolute(name, v) if name in FILES else v for v in values)]
    return tuple(words)


def _absolute(name: str, value: str) -> str:
    if name == "checkpoint" and value in DEMOS:
        return value
    if not Path(value).is_file():
        raise UnusableError(f"--{name.replace('_', '-')}: {value} is not a file. Name one that exists.")
    return str(Path(value).resolve())


def experiments(asked: argparse.Namespace, budget: str) -> tuple[Experiment, ...]:
    further = options(asked, budget)
    _, seeds, rounds = own_parts.DEFAULTS[budget]
    seeds = asked.seeds or seeds
    named = "seed 0" if seeds == 1 else f"seeds 0 to {seeds - 1}"
    drawn = f"Clips of {named}, with the same noise for all. Intervals, 95%, are over seeds."
    source = f"The source is {Path(asked.video).name}, inverted." if asked.video else drawn
    told = {
        "model": (own_model.told_model, (6, 20), "", {}),
        "register": (own_model.told_register, (6, 30), "Measured at every step of one run, seed 0.", _CHART),
        "costs": (
            own_model.told_costs,
            (12, 60),
            f"In turns with plain sampling, {rounds} rounds after one to warm up; brackets hold 95% intervals.",
            {},
        ),
        "zs2": (own_model.told_zs2, (10, 120), f"kl {own_model.KL:g}, mu {own_model.MU:g}. {drawn}", _SHEET),
        "guidance": (own_model.told_guidance, (10, 120), f"At the layer of highest entropy. {drawn}", _SHEET),
        "edit": (own_model.told_edit, (10, 120), f"In the half of the layers of lowest entropy. {source}", _SHEET),
    }
    return tuple(
        Experiment(
            read,
            part,
            SECTIONS[part][1],
            f"--part {part} --minutes {{minutes}}",
            f"--part {part} --minutes {{minutes}}",
            minutes,
            setting,
            pictures,
            results=RECORDS,
            is_alone=True,
            called=part,
            further=further,
            needs="" if part == "model" else "model",
            counts_in_part=True,
        )
        for part, (read, minutes, setting, pictures) in told.items()
    )


def about(asked: argparse.Namespace, budget: str) -> About:
    from .assembling import About

    name = Path(asked.checkpoint).name

    def lead(report: Report) -> list[str]:
        found = [
            f"Every figure here is of {name}, with the files and settings that are named at the end. Pictures are of "
            "the first seeds, as they came out; none was chosen.",
            "With few seeds a difference may be chance: intervals say how sure it is, and a single seed has none. "
            "Nothing here is a verdict on the model.",
        ]
        if missing := [part for part in report.parts if part.reason]:
            found.append(
                f"{len(missing)} of {len(report.parts)} parts did not finish. What they had measured by then is shown; "
                "--resume goes on with the rest."
            )
        return found

    words = [Path(word).name if Path(word).is_absolute() else word for word in options(asked, budget)[2:]]
    command = " ".join(["python3 host.py report", *(f'"{word}"' if " " in word else word for word in words)])
    return About(f"{name}, measured", "What the techniques cost and do on this model", SECTIONS, lead, command)
