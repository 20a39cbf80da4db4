"""Memory and time of a long clip in chunks of frames, and the time of momentum attention beside plain attention.

    python benchmarks/long_clip.py --comfyui DIR [--frames 64] [--per-batch 1 4 8 16] [--size 256] [--json FILE]

The demo model at ``--size`` pixels, CFG, two steps of ComfyUI's own sampling. Memory: the tensors that live at once,
beside the model's weights, and not what an operator needs while it runs; beside that of the clip in chunks stands that
of a clip as long as a chunk. Time: medians of alternating runs. The attention is PyTorch's, as on GPUs: ComfyUI's own
for CPUs cuts its work to the memory that is free. Run it with the Python of that ComfyUI.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from studies import LiveTensors, enter_comfyui, markdown, pack

MIB = 2**20


def momentum(model: Any, frames_per_batch: int = 0) -> Any:
    technique = pack("attention.momentum").TemporalMomentum(0.98, frames_per_batch=frames_per_batch)
    return pack("attention.tap").tap(model, technique, layers="*", kinds=["spatial"], asked_by="benchmark")[0]


def sampling(model: Any, frames: int, size: int) -> Callable[[], None]:
    """Two steps of ``frames`` frames, as a function to be called again and again."""
    import comfy.samplers

    generator = torch.Generator().manual_seed(0)
    positive, negative = ([[torch.randn(1, 32, 128, generator=generator), {}]] for _ in range(2))
    noise = torch.randn(frames, 4, size // 8, size // 8, generator=generator)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([10.0, 1.0, 0.0])

    def run() -> None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(4.0)
        guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)

    return run


def peak(model: Any, frames: int, frames_per_batch: int, size: int) -> float:
    """MiB at most beyond the loaded model."""
    clone = momentum(model, frames_per_batch)
    sampling(clone, 1, 64)()  # loads the model
    with LiveTensors() as live:
        sampling(clone, frames, size)()
    return live.peak / MIB


def seconds(runs: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """The median of each; they take turns, so that what else the machine does falls on all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            start = perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                taken.append(perf_counter() - start)
    return [median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--per-batch", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--size", type=int, default=256, help="pixels, height and width")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each whose time is taken")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    enter_comfyui(arguments.comfyui.resolve())
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    model, frames, size = pack("demo.model").load_model(), arguments.frames, arguments.size
    with torch.inference_mode():
        chunks = in_chunks(model, frames, arguments.per_batch, size, arguments.repeats)
        print(table(chunks))
        cost = cost_of_momentum(model, size, arguments.repeats)
    plain, averaged = cost["plain"], cost["momentum"]
    print(f"\n{cost['frames']} frames: plain {plain:.3f} s, momentum {averaged:.3f} s, {averaged / plain:.3f} of plain")
    if arguments.json:
        arguments.json.write_text(json.dumps({"size": size, "chunks": chunks, "cost": cost}), "utf-8")


def in_chunks(model: Any, frames: int, lengths: Sequence[int], size: int, repeats: int) -> list[dict[str, float]]:
    """Of the whole clip, and of each length of a chunk: frames, MiB, those of a clip of that length, seconds."""
    whole, *chunked = seconds([sampling(momentum(model, length), frames, size) for length in (0, *lengths)], repeats)
    memory = peak(model, frames, 0, size)
    rows = [{"length": frames, "memory": memory, "short": memory, "seconds": whole}]
    for length, taken in zip(lengths, chunked, strict=True):
        long, short = peak(model, frames, length, size), peak(model, length, 0, size)
        rows.append({"length": length, "memory": long, "short": short, "seconds": taken})
    return rows


def table(chunks: list[dict[str, float]]) -> str:
    whole, *others = chunks
    rows = [[f"{whole['length']} (whole)", f"{whole['memory']:.0f}", "", "", f"{whole['seconds']:.2f}", ""]]
    for each in others:
        ratio, slower = each["memory"] / each["short"], each["seconds"] / whole["seconds"]
        cells = [f"{each['memory']:.0f}", f"{each['short']:.0f}", f"{ratio:.2f}", f"{each['seconds']:.2f}"]
        rows.append([str(each["length"]), *cells, f"{slower:.2f}"])
    short_clip = "of a clip of a chunk's frames (MiB)"
    return markdown(["frames_per_batch", "memory (MiB)", short_clip, "ratio", "time (s)", "of whole"], rows)


def cost_of_momentum(model: Any, size: int, repeats: int, frames: int = 8) -> dict[str, float]:
    """Seconds."""
    plain, averaged = seconds([sampling(each, frames, size) for each in (model, momentum(model))], 4 * repeats)
    return {"frames": frames, "plain": plain, "momentum": averaged}


if __name__ == "__main__":
    main()
