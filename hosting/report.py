"""One report of all studies and benchmarks, or of a model of the user's own, run in the host."""

import argparse
import os
from pathlib import Path

from ..client.pythons import go_on
from .provision import PACK, Host

SCRIPT = PACK / "benchmarks" / "report.py"
LOADERS = ("checkpoint", "unet")


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
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Of a user's own model: its files, what is drawn, and how."""
    group = parser.add_argument_group("a model of your own, in place of the papers' claims")
    group.add_argument("--checkpoint", metavar="FILE", help="measure this model, or the pack's: demo, demo-video")
    group.add_argument("--loader", choices=LOADERS, default=LOADERS[0], help="ComfyUI's loader for it")
    group.add_argument("--vae", metavar="FILE", help="its VAE, where its file holds none")
    group.add_argument("--clip", metavar="FILE", nargs="+", help="its text encoders, where its file holds none")
    group.add_argument("--clip-type", metavar="TYPE", help="as in CLIPLoader (default: by the model's class)")
    group.add_argument("--clip-vision", metavar="FILE", help="a CLIP image encoder, for CLIP figures")
    group.add_argument("--video", metavar="FILE", help="the clip to edit (default: one that the model draws)")
    group.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    group.add_argument("--frames", type=int, metavar="N", help="of a clip (default: 8; video models: 9)")
    group.add_argument("--size", metavar="WxH", help="of a clip, in pixels (default: 512x512)")
    group.add_argument("--steps", type=int, metavar="N", help="of sampling (default: 12; full: 25)")
    group.add_argument("--seeds", type=int, metavar="N", help="clips of each kind (default: 2; full: 8)")
    group.add_argument("--cfg", type=float, metavar="X", help="default: 7; flow models: 5; guidance-distilled: 1")
    group.add_argument("--prompt", metavar="TEXT", help="what is drawn, or what --video shows")
    group.add_argument("--target", metavar="TEXT", help="that prompt, with what the edit changes")


_FILES = ("checkpoint", "loader", "vae", "clip", "clip_type", "clip_vision", "video")
MODEL_OPTIONS = (*_FILES, "device", "frames", "size", "steps", "seeds", "cfg", "prompt", "target")


def _of_model(arguments: argparse.Namespace) -> list[str]:
    words = []
    for name in MODEL_OPTIONS:
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    return words


def report(host: Host, arguments: argparse.Namespace) -> int:
    """Measure, and write the page; returns the script's exit code."""
    command: list[str | Path] = [host.python, SCRIPT, "--comfyui", host.comfyui]
    command += ["--budget", arguments.budget, "--output", arguments.output.absolute()]
    command += ["--only", *arguments.only] if arguments.only else []
    command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
    command += [flag for flag in ("--resume", "--gather", "--publish") if getattr(arguments, flag[2:])]
    command += _of_model(arguments)
    # A letter that the terminal's encoding lacks ends none of its scripts.
    return go_on(command, {"PYTHONIOENCODING": ":backslashreplace"} | os.environ)
