"""The jump at the seam of a clip made in two runs, by what the second run gets from the first.

    python benchmarks/momentum_seam.py --comfyui DIR [--prompt TEXT] [--seeds 3] [--frames 8] [--kl 0.1] [--mu 0.98]
        [--out FOLDER]

The settings of the template ``zs2_continue_clip``, with a prompt that leaves the colours open. Measured is the mean
difference of neighbouring frames, in levels of 255: at the seam, and the mean and the largest of the others.
"""

from __future__ import annotations

from typing import Any

from figures import table
from harness import Demo, command_line, dependency_noise, empty, enter, pack, save
from torch import Tensor, cat, inference_mode

WAYS = {
    "noise, without momentum attention": (False, False),
    "noise, with momentum attention": (True, False),
    "noise and momentum": (True, True),
}
"""What is carried over → whether there is momentum attention, and whether its momentum is carried over."""


def clip(demo: Demo, seed: int, attends: bool, carries: bool, asked: Any) -> Tensor:
    """Both runs, (2 · frames, height, width, 3)."""
    attention = pack("nodes.momentum").TemporalMomentumAttention
    latent, positive = empty(asked.frames), demo.encode(asked.prompt)
    noise, previous, runs = dependency_noise(seed, asked.kl), None, []
    for run in range(2):
        model = demo.model
        if attends:
            model = attention.execute(model, asked.mu, previous=previous, keep=carries and not run)[0]
        latents = demo.sample(model, noise.generate_noise(latent), positive, 20, seed=seed)
        runs.append(demo.decode(latents))
        if not run:
            frames = pack("nodes.noise").NoiseFrames.execute(noise, latent)[0]
            noise = dependency_noise(seed, asked.kl, previous=frames)
            if carries:
                previous = pack("nodes.momentum_of_run").MomentumOfRun.execute(model, {"samples": latents})[0]
    return cat(runs)


def steps(frames: Tensor) -> list[float]:
    return (255 * frames.diff(dim=0).abs().mean((1, 2, 3))).tolist()


def main() -> None:
    numbers: dict[str, Any] = {"prompt": ("a large star in the centre", ""), "seeds": (3, "counted from 1")}
    numbers |= {"frames": (8, "of each run"), "kl": (0.1, ""), "mu": (0.98, "")}
    arguments = command_line(__doc__, **numbers).parse_args()
    enter(arguments)
    found, rows = {}, []
    with inference_mode():
        demo = Demo()
        for seed in range(1, arguments.seeds + 1):
            for way, (attends, carries) in WAYS.items():
                found[f"seed {seed}: {way}"] = taken = steps(clip(demo, seed, attends, carries, arguments))
                seam = taken[arguments.frames - 1]
                others = [step for number, step in enumerate(taken) if number != arguments.frames - 1]
                shown = (seam, sum(others) / len(others), max(others))
                rows.append([str(seed), way, *(f"{each:.1f}" for each in shown)])
    save(arguments.out, found)
    print(table(["seed", "carried over", "at the seam", "others, mean", "others, largest"], rows))


if __name__ == "__main__":
    main()
