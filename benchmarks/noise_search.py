"""Time of the dependency noise beside that of the plain noises it is built from.

    python benchmarks/noise_search.py [--json FILE]

64 frames of 4×64×64, those of 512×512 pixels in SD, against drawing 11 × 64 plain noises: the paper's
Algorithm 1 draws a noise and 10 candidates for every frame. The jobs take turns and the median counts, so
that other work on the machine touches all of them alike. The target is less than 3 times.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from noise.dependency import dependency_noise
from noise.streams import clip_noise, generator

FRAMES, FRAME, CANDIDATES, ROUNDS = 64, (4, 64, 64), 10, 15


def draw_plain_noises() -> None:
    source = generator(0)
    for _ in range(FRAMES * (CANDIDATES + 1)):
        torch.randn(FRAME, generator=source)


def make_clip(**options) -> None:
    def model(first, draw, frames):
        return dependency_noise(first, draw, [0.01] * frames, candidates=CANDIDATES, **options)

    clip_noise((FRAMES, *FRAME), model, 0, generator(0))


JOBS: dict[str, Callable[[], None]] = {
    "11 x 64 plain noises": draw_plain_noises,
    "bisection (the node's default: search in 16 frames)": make_clip,
    "bisection, search in all frames": partial(make_clip, searched_frames=FRAMES),
    "line_search, search in all frames": partial(make_clip, searched_frames=FRAMES, solver="line_search"),
    "closed_form, search in all frames": partial(make_clip, searched_frames=FRAMES, solver="closed_form"),
}


def seconds(job: Callable[[], None]) -> float:
    start = perf_counter()
    job()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="also write the seconds of every round here")
    arguments = parser.parse_args()
    seconds(make_clip)
    rounds = [{name: seconds(job) for name, job in JOBS.items()} for _ in range(arguments.rounds)]
    times = {name: median(round_[name] for round_ in rounds) for name in JOBS}
    plain = times["11 x 64 plain noises"]
    print(f"{FRAMES} frames of {FRAME}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, time in times.items():
        print(f"{name:<52} {1000 * time:7.1f} ms {time / plain:6.2f} x")
    if arguments.json:
        arguments.json.write_text(json.dumps({"plain": "11 x 64 plain noises", "rounds": rounds}), "utf-8")


if __name__ == "__main__":
    main()
