"""The command line of batch.py: any Python reads it, and one that has what it takes goes on."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..client.errors import ComfyError
from ..client.pythons import PACK, go_on, lacking, python_with

NEEDED = ("aiohttp", "tqdm")
"""Packages that ComfyUI requires, too."""
LOCAL = "local"
"""The Ray cluster that is started for a batch."""
DEFAULT_SERVER = "http://127.0.0.1:8188"
_EPILOG = """
the table
  CSV: a line for each run, a column for each input, named  node.input  with the node's title or id.
    Prompt.text,KSampler.steps
    a red circle,20
    a blue star,30
  YAML (or the same as .json): "grid" runs every combination, "list" reads lists side by side, "set" is for all runs.
    set:  {KSampler.steps: 20}
    grid: {DependencyNoise.kl: [0.01, 0.1], 7.mu: [0, 0.98]}
    list: {RandomNoise.noise_seed: [1, 2], Prompt.text: [a red circle, a blue star]}

what comes of it, in the folder --out
  manifest.jsonl     a line for each run: values, seeds, server, times, files, texts, figures
  0001_…/            what the first run saved, and the prompt that made it
  contact_sheet.png  what every run shows (needs Pillow), comparison.png: figures over inputs (needs matplotlib)

The same command again goes on where the last one stopped: finished runs are not repeated.
Exit code: 0 all runs are done, 1 some failed or could not be run, 2 wrong usage, 130 stopped by Ctrl-C.
"""


def parser() -> argparse.ArgumentParser:
    """The arguments of batch.py."""
    about = "Run a ComfyUI workflow many times with other inputs, on one or more ComfyUI servers."
    top = argparse.ArgumentParser(
        "batch.py", description=about, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("workflow", metavar="WORKFLOW", type=Path, help="saved from the canvas, or exported as API")
    top.add_argument("table", metavar="TABLE", type=Path, help="what to vary: .csv, .tsv, .yaml, .yml or .json")
    servers = top.add_argument_group("servers")
    servers.add_argument(
        "--server", metavar="URL", nargs="+", action="extend", help=f"ComfyUI servers (default: {DEFAULT_SERVER})"
    )
    servers.add_argument(
        "--retries",
        metavar="N",
        type=_count,
        default=3,
        help="how many times a run may lose its server before it counts as failed (default: 3)",
    )
    servers.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=300.0,
        help="how long to wait for a server that went away before doing without it (default: 300)",
    )
    results = top.add_argument_group("results")
    results.add_argument("--out", metavar="DIR", type=Path, help="default: batch-NAME, after the table")
    results.add_argument("--retry-failed", action="store_true", help="run again what failed the last time")
    results.add_argument("--dry-run", action="store_true", help="check everything, list the runs, queue nothing")
    ray = top.add_argument_group("Ray (pip install ray)")
    ray.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const=LOCAL,
        help="give each server to a worker of a Ray cluster: of the one at ADDRESS (auto finds it), or of a new one on "
        "this machine. Write it last, or as --ray=ADDRESS",
    )
    ray.add_argument("--comfyui", metavar="DIR", help="workers start a ComfyUI of their own from this folder")
    ray.add_argument("--python", metavar="EXE", help="its Python, if that is not found beside it")
    ray.add_argument("--workers", metavar="N", type=_count, help="how many of them (default: 2)")
    ray.add_argument("--comfyui-arguments", metavar="TEXT", default="", help="more arguments for its main.py")
    return top


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run batch.py; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    # A polite kill ends like Ctrl-C, so that servers are told to stop.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if lacks := lacking(NEEDED):
            return _go_on_elsewhere(lacks, arguments, argv)
        from .batch import batch

        return batch(arguments)
    except ComfyError as error:
        print(f"batch.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("batch.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _go_on_elsewhere(lacks: Sequence[str], arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """In the Python of a ComfyUI, which has the packages."""
    if arguments.ray:  # that Python has no Ray
        install = f"{sys.executable} -m pip install {' '.join(lacks)}"
        raise ComfyError(f"{sys.executable} lacks {' and '.join(lacks)}: run  {install}")
    python = python_with(NEEDED)
    print(f"batch: this Python lacks {' and '.join(lacks)}; going on with {python}", file=sys.stderr)
    return go_on([python, PACK / "batch.py", *argv])
