"""Time of the dependency noise beside that of the plain noises it is built from.

    python benchmarks/noise_search.py [--rounds 15] [--out FOLDER]

64 frames of 4×64×64, those of 512×512 pixels in SD, against drawing 11 × 64 plain noises: the paper's Algorithm 1 draws
a noise and 10 candidates for every frame. The target is less than 3 times.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from claims import Cost, estimate, shown
from figures import costs_table
from harness import Json, command_line, pack, save, take_turns

FRAMES, FRAME, CANDIDATES = 64, (4, 64, 64), 10
PLAIN = "11 x 64 plain noises"


def draw_plain_noises() -> None:
    source = pack("noise.streams").generator(0)
    for _ in range(FRAMES * (CANDIDATES + 1)):
        torch.randn(FRAME, generator=source)


def make_clip(**options: object) -> None:
    streams, dependency_noise = pack("noise.streams"), pack("noise.dependency").dependency_noise

    def model(first, draw, frames):
        return dependency_noise(first, draw, [0.01] * frames, **options)

    streams.clip_noise((FRAMES, *FRAME), model, 0, streams.generator(0))


searched = partial(make_clip, orthogonal=False, candidates=CANDIDATES)
JOBS = {
    PLAIN: draw_plain_noises,
    "bisection, orthogonal (the node's default)": make_clip,
    "closed_form, orthogonal": partial(make_clip, solver="closed_form"),
    "bisection, best of 10": searched,
    "line_search, best of 10": partial(searched, solver="line_search"),
    "closed_form, best of 10": partial(searched, solver="closed_form"),
}


def costs(times: Json) -> list[Cost]:
    """Of the plain noises that the search draws, median of the rounds."""
    ratios = {name: torch.tensor(each) / torch.tensor(times[PLAIN]) for name, each in times.items() if name != PLAIN}
    return [
        Cost(
            f"Dependency noise, {name}, of {PLAIN}",
            shown(estimate(ratio, np.median), ".2f"),
            "1, drawing alone" if "best of" in name else "at most 3, our target",
        )
        for name, ratio in ratios.items()
    ]


def main() -> None:
    arguments = command_line(__doc__, comfyui=False, rounds=(15, "")).parse_args()
    torch.set_num_threads(arguments.threads)
    times = take_turns(JOBS, arguments.rounds)
    save(arguments.out, times)
    print("\n".join(f"{name}: {1000 * np.median(each):.1f} ms" for name, each in times.items()), "\n")
    print(costs_table(costs(times)))


if __name__ == "__main__":
    main()
