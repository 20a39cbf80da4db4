"""Peak memory of an edit against plain sampling of source and target together, over the number of frames.

    python benchmarks/editing_memory.py --comfyui DIR [--frames 2 4 8 16] [--size 256]

The demo model at ``--size`` pixels, every layer replaced. Plain: the same four branches a step (CFG of two clips, as a
batch of twice the frames), by ComfyUI's own sampling. On a GPU torch's peak is read, elsewhere the most that this
process ever held, each run in a process of its own; what the loaded model needs is taken off. The attention is
PyTorch's, as on GPUs: ComfyUI's own for CPUs cuts its work to the memory that is free. Run it with the Python of that
ComfyUI.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from studies import enter_comfyui, markdown, pack


def peak(edits: bool, frames: int, size: int) -> float:
    """MiB that two steps take at most, beyond the loaded model."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model, sampler = pack("demo.model").load_model(), comfy.samplers.sampler_object("euler")
    sigmas = torch.tensor([10.0, 1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    source, target, negative = ([[torch.randn(1, 32, 128, generator=generator), {}]] for _ in range(3))
    editing = pack("samplers.editing")

    def run(frames: int) -> None:
        latent = {"samples": torch.zeros(frames, 4, size // 8, size // 8)}
        if edits:
            prompts = editing.Prompts(source, target, negative)
            edit = editing.Edit("*", cfg=4.0, source_cfg=4.0)
            editing.sample_edit(model, prompts, edit, Noise_RandomNoise(0), sampler, sigmas, latent, "benchmark")
        else:
            noise = torch.randn(2 * frames, *latent["samples"].shape[1:], generator=generator)
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(target, negative)
            guider.set_cfg(4.0)
            guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)

    with torch.inference_mode():
        run(1)  # loads the model
        before = _held()
        run(frames)
    return (_held() - before) / 2**20


def _held() -> int:
    """The most bytes held so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--frames", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--size", type=int, default=256, help="pixels, height and width")
    parser.add_argument("--way", choices=("plain", "edit"), help="measure this alone, of the first of --frames")
    arguments = parser.parse_args()
    if arguments.way:
        enter_comfyui(arguments.comfyui.resolve())
        from comfy.cli_args import args

        args.use_pytorch_cross_attention = True
        print(peak(arguments.way == "edit", arguments.frames[0], arguments.size))
        return
    rows = []
    for frames in arguments.frames:
        command = [sys.executable, __file__, "--comfyui", arguments.comfyui, "--size", arguments.size]
        plain, edit = (
            float(subprocess.check_output([*map(str, command), "--frames", str(frames), "--way", way]).split()[-1])
            for way in ("plain", "edit")
        )
        rows.append([str(frames), f"{plain:.0f}", f"{edit:.0f}", f"{edit / plain:.2f}", f"{edit / frames:.1f}"])
    print(markdown(["frames", "plain (MiB)", "edit (MiB)", "ratio", "edit, per frame (MiB)"], rows))


if __name__ == "__main__":
    main()
