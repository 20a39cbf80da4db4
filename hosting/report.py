"""One report of all studies and benchmarks, run in the host."""

import argparse
import os
from pathlib import Path

from ..client.pythons import go_on
from .provision import PACK, Host

SCRIPT = PACK / "benchmarks" / "report.py"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that the script takes."""
    parser.add_argument("--budget", choices=["quick", "full"], default="quick", help="quick: 20 minutes on two cores")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("coherence-report"), help="default: ./coherence-report"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these experiments alone")
    parser.add_argument("--minutes", type=float, metavar="N", help="that all may take (default: 20, or 1440 for full)")
    parser.add_argument("--resume", action="store_true", help="go on with what an earlier run measured")
    parser.add_argument("--gather", action="store_true", help="then more clips, until claims are decided")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/REPORT.md, too, from a clean tree")


def report(host: Host, arguments: argparse.Namespace) -> int:
    """Measure, and write the page; returns the script's exit code."""
    command: list[str | Path] = [host.python, SCRIPT, "--comfyui", host.comfyui]
    command += ["--budget", arguments.budget, "--output", arguments.output.absolute()]
    command += ["--only", *arguments.only] if arguments.only else []
    command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
    command += [flag for flag in ("--resume", "--gather", "--publish") if getattr(arguments, flag[2:])]
    # A letter that the terminal's encoding lacks ends none of its scripts.
    return go_on(command, {"PYTHONIOENCODING": ":backslashreplace"} | os.environ)
