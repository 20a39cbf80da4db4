"""Memory and time of a long clip in chunks of frames, and the time of momentum attention beside plain attention.

    python benchmarks/long_clip.py --comfyui DIR [--frames 64] [--per-batch 1 4 8 16] [--size 256] [--out FOLDER]

The demo model at ``--size`` pixels, CFG, two steps of ComfyUI's own sampling. Memory: the tensors that live at once,
beside the model's weights, and not what an operator needs while it runs; beside that of the clip in chunks stands that
of a clip as long as a chunk. Time: medians of runs that take turns. The attention is PyTorch's, as on GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from claims import Cost
from figures import table
from harness import Json, command_line, enter, pack, peak_of, sampling, save, take_turns


def momentum(model: Any, frames_per_batch: int = 0) -> Any:
    technique = pack("techniques.momentum").TemporalMomentum(0.98, frames_per_batch=frames_per_batch)
    return pack("attention.tap").tap(model, technique, layers="*", kinds=["spatial"], asked_by="benchmark")[0]


def in_chunks(model: Any, frames: int, lengths: Sequence[int], size: int, rounds: int) -> list[Json]:
    """Of the whole clip, and of each length of a chunk: MiB, those of a clip of that length, seconds."""
    runs = {str(length): sampling(momentum(model, length), frames, size) for length in (0, *lengths)}
    seconds = {name: median(taken) for name, taken in take_turns(runs, rounds, perf_counter).items()}
    memory = peak_of(runs["0"])
    rows: list[Json] = [{"length": frames, "memory": memory, "short": memory, "seconds": seconds["0"]}]
    for length in lengths:
        short = peak_of(sampling(momentum(model), length, size))
        figures = {"memory": peak_of(runs[str(length)]), "short": short, "seconds": seconds[str(length)]}
        rows.append({"length": length, **figures})
    return rows


def costs(results: Json) -> list[Cost]:
    whole, *others = results["chunks"]
    memory = [
        Cost(
            f"Memory of {whole['length']} frames in chunks of {each['length']}, of a clip of {each['length']}",
            f"{each['memory'] / each['short']:.2f}",
            "1",
            f"all frames at once {whole['memory'] / each['short']:.2f}",
        )
        for each in others
    ]
    longest = others[-1]
    what = f"Time of {whole['length']} frames in chunks of {longest['length']}, of all at once"
    return [*memory, Cost(what, f"{longest['seconds'] / whole['seconds']:.2f}", "1")]


def main() -> None:
    parser = command_line(
        __doc__, frames=(64, ""), size=(256, "pixels, height and width"), repeats=(5, "runs of each that are timed")
    )
    parser.add_argument("--per-batch", type=int, nargs="+", default=[1, 4, 8, 16])
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    model, size, rounds = pack("demo.model").load_model(), arguments.size, arguments.repeats
    with torch.inference_mode():
        chunks = in_chunks(model, arguments.frames, arguments.per_batch, size, rounds)
        pair = {"plain": sampling(model, 8, size), "momentum": sampling(momentum(model), 8, size)}
        cost = {name: median(taken) for name, taken in take_turns(pair, 4 * rounds, perf_counter).items()}
    save(arguments.out, {"size": size, "chunks": chunks, "cost": cost})
    print(table(chunks[0], ([f"{value:.4g}" for value in each.values()] for each in chunks)))
    print(f"\n8 frames: momentum takes {cost['momentum'] / cost['plain']:.3f} of plain attention's time")


if __name__ == "__main__":
    main()
