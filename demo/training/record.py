"""Asks the shipped models everything that the tests hold them to, and records their answers in demo/gates.json:

    python demo/training/record.py --comfyui PATH

It resumes where it was stopped, and starts anew when the weights have changed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from train import enter, part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter(arguments.comfyui)
    gates = part("gates")
    gates.record(lambda told: print(told, flush=True))
    print(gates.summary())


if __name__ == "__main__":
    main()
