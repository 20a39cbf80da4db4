"""Memory and time of a long clip in chunks of frames, and the time of momentum attention beside plain attention.

    python benchmarks/long_clip.py --comfyui DIR [--frames 64] [--per-batch 1 4 8 16] [--size 256]

The demo model at ``--size`` pixels, CFG, two steps of ComfyUI's own sampling. Memory: what is held at most beyond the
loaded model, each run in a process of its own; beside that of the clip in chunks stands that of a clip as long as a
chunk. On a GPU torch's peak is read, elsewhere that of the process (Linux). Time: medians of alternating runs,
in one process. The attention is PyTorch's, as on GPUs: ComfyUI's own for CPUs cuts its work to the memory that is
free. Run it with the Python of that ComfyUI.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from studies import enter_comfyui, markdown, pack

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
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sampling(clone, frames, size)()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # from here on, "most" is the most from here on
    before = _kib("VmRSS")
    sampling(clone, frames, size)()
    return (_kib("VmHWM") - before) / 1024


def _kib(what: str) -> int:
    """Of this process's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


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
    parser.add_argument("--measure", type=int, nargs=2, metavar=("FRAMES", "PER_BATCH"), help="this peak alone")
    arguments = parser.parse_args()
    enter_comfyui(arguments.comfyui.resolve())
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    model, frames, size = pack("demo.model").load_model(), arguments.frames, arguments.size
    with torch.inference_mode():
        if arguments.measure:
            print(peak(model, *arguments.measure, size))
            return
        print(in_chunks(model, frames, arguments.per_batch, size, arguments.repeats))
        print(cost_of_momentum(model, size, arguments.repeats))


def in_chunks(model: Any, frames: int, lengths: Sequence[int], size: int, repeats: int) -> str:
    """A table: of each length of a chunk its memory and time."""

    def measured(*clip: int) -> float:
        command = [sys.executable, *sys.argv, "--measure", *map(str, clip)]
        return float(subprocess.check_output(command).split()[-1])

    whole, *chunked = seconds([sampling(momentum(model, length), frames, size) for length in (0, *lengths)], repeats)
    rows = [[f"{frames} (whole)", f"{measured(frames, 0):.0f}", "", "", f"{whole:.2f}", ""]]
    for length, taken in zip(lengths, chunked, strict=True):
        long, short = measured(frames, length), measured(length, 0)
        cells = [f"{long:.0f}", f"{short:.0f}", f"{long / short:.2f}", f"{taken:.2f}", f"{taken / whole:.2f}"]
        rows.append([str(length), *cells])
    short_clip = "of a clip of a chunk's frames (MiB)"
    return markdown(["frames_per_batch", "memory (MiB)", short_clip, "ratio", "time (s)", "of whole"], rows)


def cost_of_momentum(model: Any, size: int, repeats: int, frames: int = 8) -> str:
    plain, averaged = seconds([sampling(each, frames, size) for each in (model, momentum(model))], 4 * repeats)
    return f"\n{frames} frames: plain {plain:.3f} s, momentum {averaged:.3f} s, {averaged / plain:.3f} of plain"


if __name__ == "__main__":
    main()
