"""Trains the models of the demo's world. One command, resumable at any time, CPU or GPU:

    python demo/training/run.py --comfyui PATH --part image

Parts, in order: tokenizer, text, decoder, image, transformer, video, flux. README.md says how far each has come.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from train import enter, part

PARTS = {
    "tokenizer": ("text", "train_tokenizer"),
    "text": ("text", "train_text"),
    "decoder": ("decoder", "train_decoder"),
    "image": ("image", "train_image"),
    "transformer": ("transformer", "train_transformer"),
    "video": ("video", "train_video"),
    "flux": ("flux", "train_flux"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--part", required=True, choices=PARTS)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="pictures, crops or clips a step; the part's own by default")
    parser.add_argument("--rate", type=float, help="learning rate; the part's own by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="save and stop after this many")
    parser.add_argument("--fall", type=float, default=0, help="the rate falls to zero over the last seconds, this many")
    parser.add_argument("--plan", type=int, nargs=2, help="seen when the rate starts to fall, and when it is zero")
    parser.add_argument("--text-steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    if "RANK" in os.environ:  # started by torchrun
        torch.distributed.init_process_group("gloo")
    enter(arguments.comfyui)
    module, function = PARTS[arguments.part]
    getattr(part(f"training.{module}"), function)(arguments)


if __name__ == "__main__":
    main()
