"""One report of all studies and benchmarks, run in the host."""

import argparse
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

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
    parser.add_argument("--publish", action="store_true", help="write benchmarks/REPORT.md, too")


def report(host: Host, arguments: argparse.Namespace) -> int:
    """Measure, and write the page; returns the script's exit code."""
    command: list[str | Path] = [host.python, SCRIPT, "--comfyui", host.comfyui]
    command += ["--budget", arguments.budget, "--output", arguments.output.absolute()]
    command += ["--only", *arguments.only] if arguments.only else []
    command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
    command += [flag for flag in ("--resume", "--publish") if getattr(arguments, flag[2:])]
    process = subprocess.Popen(command)
    # Ctrl-C reaches the script too: it gets the time to end what it has begun. A polite kill is passed on.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()
