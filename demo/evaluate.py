"""Samples pictures for random captions from the demo model and says how many show what was asked for:

    python demo/evaluate.py --comfyui PATH [--count 200] [--sheet FILE] [--card]

``--card`` writes the figures, the curves and some samples into the model card, demo/FIRST.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train import enter, part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--count", type=int, default=200, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--scheduler")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (PNG)")
    parser.add_argument("--card", action="store_true", help="write figures, curves and samples into the model card")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter(arguments.comfyui)
    evaluation, card, model = (part(name) for name in ("evaluation", "card", "model"))
    vae = model.load_vae()
    sampling = {
        name: getattr(arguments, name) or getattr(evaluation, name.upper())
        for name in ("sampler", "scheduler", "steps", "cfg")
    }
    loaded = model.load_model(), model.load_clip(), vae
    result = evaluation.evaluate(*loaded, arguments.count, arguments.seed, **sampling)
    print(evaluation.table(result))
    if arguments.sheet:
        card.save_sheet(result, arguments.sheet)
    if arguments.card:
        psnr = evaluation.reconstruction(vae, evaluation.rendered(100))
        words = "{sampler}, {scheduler}, {steps} steps, cfg {cfg:g}".format(**sampling)
        card.write_card(result, psnr, f"{words}, seed {arguments.seed}")


if __name__ == "__main__":
    main()
