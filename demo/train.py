"""Trains the first demo model from nothing: tokenizer, text encoder, UNet, VAE. One command, resumable, CPU or GPU:

    python demo/train.py --comfyui PATH [--threads N] [--parts tokenizer text unet vae video_text video]

Checkpoints live in demo/.training (ignored by git); a run that was stopped goes on where its last one was.
Data comes from shapes.py and training/first/data.py; every random number from --seed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

PACK = Path(__file__).resolve().parent.parent
NAME = "coherence_training"


def enter(comfyui: Path) -> None:
    """Makes ComfyUI's modules importable, and the pack as ``coherence_training``, without starting either."""
    sys.path.insert(0, str(comfyui.resolve()))
    import comfy.options  # noqa: F401  (the scripts here own the command line)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec
    sys.modules[NAME] = importlib.util.module_from_spec(spec)


def part(name: str) -> ModuleType:
    """A module of this folder, once ComfyUI is entered."""
    return importlib.import_module(f"{NAME}.demo.{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--parts", nargs="+", default=["tokenizer", "text", "unet", "vae", "video_text", "video"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="pictures per step of the UNet")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the UNet")
    parser.add_argument("--text-steps", type=int, default=400)
    parser.add_argument("--text-from", type=Path, help="second stage only, from these weights")
    parser.add_argument("--unet-stages", type=int, nargs="+", default=[2400, 3500, 4300], help="steps that end a stage")
    parser.add_argument("--vae-steps", type=int, default=2500)
    parser.add_argument("--video-stages", type=int, nargs=2, default=[3200, 3600], help="steps that end a stage")
    parser.add_argument("--clip-variants", type=int, default=6, help="jitters of each shape, size, place and motion")
    parser.add_argument("--save-every", type=int, default=100, help="steps of the UNet")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    enter(arguments.comfyui)
    part("training.first.checkpoints").STATE.mkdir(exist_ok=True)
    trainers = {
        "tokenizer": lambda: part("training.first.text").train_tokenizer,
        "text": lambda: part("training.first.text").train_text,
        "unet": lambda: part("training.first.unet").train_unet,
        "vae": lambda: part("training.first.vae").train_vae,
        "video_text": lambda: part("training.first.video").train_video_text,
        "video": lambda: part("training.first.video").train_video,
    }
    for name in arguments.parts:
        trainers[name]()(arguments)


if __name__ == "__main__":
    main()
