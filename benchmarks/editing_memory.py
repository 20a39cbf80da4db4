"""Peak memory of an edit against plain sampling of source and target together, over the number of frames.

    python benchmarks/editing_memory.py --comfyui DIR [--frames 8 16 32 64] [--size 128]

The demo model at ``--size`` pixels, every layer replaced. Plain: the same four branches a step (CFG of two clips, as a
batch of twice the frames), by ComfyUI's own sampling. Counted are the tensors that live at once, beside the model's
weights, and not what an operator needs while it runs. The attention is PyTorch's, as on GPUs: ComfyUI's own for CPUs
cuts its work to the memory that is free. Run it with the Python of that ComfyUI.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from studies import LiveTensors, enter_comfyui, markdown, pack


def peak(edits: bool, frames: int, size: int) -> float:
    """MiB of tensors that two steps hold at most, beyond the loaded model."""
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
        with LiveTensors() as live:
            run(frames)
    return live.peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--size", type=int, default=128, help="pixels, height and width")
    parser.add_argument("--json", type=Path, help="also write the MiB here")
    arguments = parser.parse_args()
    enter_comfyui(arguments.comfyui.resolve())
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    rows, taken = [], []
    for frames in arguments.frames:
        plain, edit = (peak(edits, frames, arguments.size) for edits in (False, True))
        taken.append({"frames": frames, "plain": plain, "edit": edit})
        rows.append([str(frames), f"{plain:.1f}", f"{edit:.1f}", f"{edit / plain:.2f}", f"{edit / frames:.2f}"])
    print(markdown(["frames", "plain (MiB)", "edit (MiB)", "ratio", "edit, per frame (MiB)"], rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(taken), "utf-8")


if __name__ == "__main__":
    main()
