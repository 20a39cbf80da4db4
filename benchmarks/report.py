"""One report of everything: what became of the papers' claims at toy scale, and what it costs; or of a model of yours.

    python benchmarks/report.py --comfyui DIR [--budget quick|full] [--output DIR] [--only NAME ...] [--resume]
                                [--gather] [--publish]
    python benchmarks/report.py --comfyui DIR --checkpoint FILE [--vae FILE] [--clip FILE] [--video FILE] [...]

Runs the studies and benchmarks, the most telling first, two side by side with one thread each; those that take times
run alone at the end. OUTPUT gets ``index.html``, which needs nothing else, and ``REPORT.md`` with its pictures. What
was measured stays there: ``--resume`` goes on with it. An experiment that fails or runs out of time is named in the
report with its reason; the others go on. With ``--gather``, and in the full budget, studies then go on with more clips
until their claims are decided or the time is over. ``--publish`` writes it into this folder, too, and only from a
clean tree, for its first line names the commit. With ``--checkpoint`` the
experiments are the parts of ``own_model.py``, one after the other. ``python3 host.py report`` runs this in the host
that it finds.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from claims import count
from harness import pack
from reporting import own, writing
from reporting.assembling import assemble, require_clean, versions_of
from reporting.experiment import BUDGETS, Experiment
from reporting.experiments import EXPERIMENTS
from reporting.gathering import as_before, grown
from reporting.running import SHORTEST, Runner

MINUTES = {"quick": 20.0, "full": 24 * 60.0}
LANES = 2
SCRIPTS = Path(__file__).resolve().parent


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    top.add_argument("--budget", choices=BUDGETS, default="quick", help="quick: 20 minutes on two quiet cores")
    top.add_argument("--output", metavar="DIR", type=Path, default=Path("coherence-report"))
    top.add_argument("--only", nargs="+", metavar="NAME", help="these experiments alone")
    top.add_argument("--resume", action="store_true", help="go on with what DIR holds of an earlier run")
    top.add_argument("--gather", action="store_true", help="then more clips, until claims are decided (always if full)")
    top.add_argument("--minutes", type=float, help="that all may take, and each in proportion (default: the budget's)")
    top.add_argument("--publish", action="store_true", help="write benchmarks/REPORT.md, too, from a clean tree")
    pack("hosting.report").add_model_options(top)
    return top


def usable_cores() -> int:
    """By this process."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def chosen_of(experiments: Sequence[Experiment], names: Sequence[str] | None) -> list[Experiment]:
    """Those of these names, and what they need."""
    if unknown := {*(names or ())} - {each.name for each in experiments}:
        there = ", ".join(each.name for each in experiments)
        sys.exit(f"report: --only: no experiment {', '.join(sorted(unknown))}. Choose of {there}.")
    wanted = {*(names or (each.name for each in experiments))}
    wanted |= {each.needs for each in experiments if each.name in wanted}
    return [each for each in experiments if each.name in wanted]


def say(line: str) -> None:
    print(f"report: {line}", file=sys.stderr, flush=True)


def measured_on(folder: Path) -> dict[str, str]:
    """The day, or, where some was measured in earlier runs, the days."""
    times = [path.stat().st_mtime for path in folder.rglob("*.json*")] or [time.time()]
    days = [datetime.fromtimestamp(each, timezone.utc).strftime("%Y-%m-%d") for each in (min(times), max(times))]
    return {"Measured on": " to ".join(dict.fromkeys(days))}


def main() -> None:
    arguments = parser().parse_args()
    # A process that a shell has put into the background ignores Ctrl-C, and hands that on to those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.publish:
        require_clean()
    budget, output, comfyui = arguments.budget, arguments.output.resolve(), arguments.comfyui.resolve()
    is_own = bool(arguments.checkpoint)
    if is_own and (arguments.publish or arguments.gather):
        sys.exit("report: --publish and --gather are for the report of the pack's own models. Leave them out.")
    all_of_them = own.experiments(arguments, budget) if is_own else EXPERIMENTS
    about = own.about(arguments, budget) if is_own else None
    chosen = [each for each in chosen_of(all_of_them, arguments.only) if each.limit(budget)]
    folder = output / "measured" / (f"{budget}-own" if is_own else budget)
    usual = (2 if is_own else 1) * MINUTES[budget]
    seconds = 60 * (arguments.minutes or usual)
    if arguments.resume and not is_own:
        chosen = [as_before(each, folder, budget) for each in chosen]
    runner = Runner(comfyui, folder, budget, seconds, seconds / 60 / usual, say, threads=0 if is_own else 1)
    versions = versions_of(comfyui, runner.threads)  # before hours in which the tree may change
    is_resumed, is_gathering = arguments.resume, not is_own and (arguments.gather or budget == "full")
    versions |= {"Clips": "as many as decide, within the time (--gather)"} if is_gathering else {}
    while True:
        outcomes = runner.run(chosen, 1 if is_own else min(LANES, usable_cores()), is_resumed)
        report = assemble(chosen, outcomes, folder, budget, versions | measured_on(folder), about)
        report.versions.update(writing.took(report.parts))
        if not is_own:
            found = count(report.claims()).items()
            say(", ".join(f"{number} {name}" for name, number in found) or "no claims measured")
        more = grown(report) if is_gathering else chosen
        if more == chosen or runner.left() < SHORTEST:
            break
        chosen, is_resumed = more, True
    if arguments.publish:
        require_clean()
    for place in [output, *[SCRIPTS] * arguments.publish]:
        writing.write(report, place)
    index = output / "index.html"
    index.write_text(writing.html(report), "utf-8")
    found = count(report.claims())
    if not is_own:
        print(", ".join(f"{number} {name}" for name, number in found.items()) or "no claims measured")
    print(f"Report:  {index}")
    if failed := [part.experiment.name for part in report.parts if part.reason]:
        print(f"Not measured: {', '.join(failed)}; the report says why")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("report: stopped; --resume goes on")
