"""Measures a model of the world against its gates:

    python demo/training/evaluate.py --comfyui PATH --part image [--count 200] [--cfg 3 5] [--sheet FILE]

It takes the newest weights: those of the training on this machine, else the repository's.
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
    parser.add_argument("--part", choices=("image", "video", "transformer", "flux"), default="image")
    parser.add_argument("--count", type=int, default=200, help="pictures, or clips")
    parser.add_argument("--pairs", type=int, default=50, help="pictures of two things, measured separately")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--motion", help="only clips with this one, such as spinning")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, nargs="+", default=[3.0, 5.0])
    parser.add_argument("--one-step", type=int, default=48, help="drawn pictures for the table of σ, of image; 0: none")
    parser.add_argument("--circles", type=int, default=0, help="circles drawn by this model and by the first one")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures, or eight clips, here (PNG)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter(arguments.comfyui)
    draws_pictures = arguments.part in ("image", "flux")
    motions = () if draws_pictures else part("world.motion").MOTIONS
    if arguments.motion not in (None, *motions):
        expected = f"one of: {', '.join(motions)}" if motions else "none: pictures do not move"
        parser.error(f"--motion is {arguments.motion}, expected {expected}")
    (evaluate_pictures if draws_pictures else evaluate_clips)(arguments)


def evaluate_pictures(arguments: argparse.Namespace) -> None:
    world, model, state = part("world.evaluation"), part("world.model"), part("training.state")
    is_flow, weights = arguments.part == "flux", state.trained_weights(f"world_{arguments.part}")
    loaded = (
        (model.load_picture_transformer if is_flow else model.load_model)(weights),
        model.load_clip(state.trained_weights("world_text")),
        model.load_vae(state.trained_weights("world_decoder")),
    )
    how = {"steps": arguments.steps, **({"sampler": "euler", "scheduler": "simple"} if is_flow else {})}
    for cfg in arguments.cfg:
        for pairs, count in ((False, arguments.count), (True, arguments.pairs)):
            if count:
                seen = world.evaluate(*loaded, count, arguments.seed, pairs=pairs, cfg=cfg, **how)
                words = "two things" if pairs else "one thing"
                print(f"\n{words}, {arguments.steps} steps, cfg {cfg:g}, seed {arguments.seed}\n\n{world.table(seen)}")
                if arguments.sheet and not pairs:
                    name = arguments.sheet.with_stem(f"{arguments.sheet.stem}_cfg{cfg:g}")
                    part("world.sheet").save_sheet([each.picture for each in seen[:64]], name)
    if arguments.one_step and not is_flow:
        print("\noutlines of what is predicted in one step from drawn pictures at σ (0: the VAE alone), in pixels")
        for sigma, off in world.one_step_outlines(*loaded, arguments.one_step).items():
            print(f"  {sigma:5.1f}  {off:.3f}")
    if arguments.circles:
        cfg = arguments.cfg[0]
        first = ("the first model", _first(), {"steps": arguments.steps})
        for name, drawn_by, settings in (("this model", loaded, how), first):
            off = world.circles(*drawn_by, arguments.circles, arguments.seed, cfg=cfg, **settings)
            figures = f"{off.mean():.2f} px on average, {off.quantile(0.95):.2f} at the 95th percentile"
            print(f"circles by {name}, cfg {cfg:g}: outlines off by {figures}")


def _first() -> tuple:
    model = part("model")
    return model.load_model(), model.load_clip(), model.load_vae()


def evaluate_clips(arguments: argparse.Namespace) -> None:
    world, model, state = part("world.clip_evaluation"), part("world.model"), part("training.state")
    weights, decoder = state.trained_weights, state.trained_weights("world_decoder")
    if arguments.part == "video":
        kind, words, vae = world.VIDEO, "world_video_text", model.load_vae(decoder)
        loaded = model.load_video_model(weights("world_image"), weights("world_video"))
    else:
        kind, words, vae = world.TRANSFORMER, "world_text", model.load_clip_vae(decoder)
        loaded = model.load_transformer(weights("world_transformer"))
    clip = model.load_clip(weights(words))
    for cfg in arguments.cfg:
        how = {"cfg": cfg, "steps": arguments.steps, "motion": arguments.motion}
        seen = world.evaluate_clips(kind, loaded, clip, vae, arguments.count, arguments.seed, **how)
        print(f"\n{arguments.steps} steps, cfg {cfg:g}, seed {arguments.seed}\n\n{world.table(seen, kind)}")
        if arguments.sheet:
            name = arguments.sheet.with_stem(f"{arguments.sheet.stem}_cfg{cfg:g}")
            shown = [each.clip[::2] for each in seen[:8]]
            part("world.sheet").save_sheet([frame for clip in shown for frame in clip], name, len(shown[0]))


if __name__ == "__main__":
    main()
