"""The time of momentum attention on a small Flux, beside plain sampling.

    python benchmarks/momentum_flux.py --comfyui DIR [--frames 8] [--size 256] [--width 256] [--out FOLDER]

ComfyUI's own class with random weights: ``--width`` channels, heads of 128 as in the real one, 2 double and 4 single
blocks. ``--frames`` frames of ``--size`` pixels, CFG, two steps of ComfyUI's own sampling. Medians of runs that take
turns. The attention is PyTorch's, as on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness import command_line, enter, guided, pack, save, take_turns

TEXT, POOLED = 128, 64
"""Channels of the prompt, and of its pooled form."""
SIGMAS = torch.tensor([1.0, 0.5, 0.0])


def flux(width: int, sharpness: float = 1.0) -> Any:
    """``sharpness``: what queries and keys, which have unit variance, are multiplied by."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED,
        "context_in_dim": TEXT,
        "hidden_size": width,
        "mlp_ratio": 4.0,
        "num_heads": width // 128,
        "depth": 2,
        "depth_single_blocks": 4,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    known = comfy.supported_models.Flux(config)
    known.set_inference_dtype(torch.float32, None)
    model = known.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
        else:
            weight.fill_(0.0 if name.endswith("bias") else sharpness)
    cpu = torch.device("cpu")
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)


def with_momentum(model: Any, mu: float) -> Any:
    how = {"layers": "*", "kinds": ["spatial", "joint"], "by_row": True, "asked_by": "benchmark"}
    return pack("attention.tap").tap(model, pack("techniques.momentum").TemporalMomentum(mu), **how)[0]


def random_prompt(generator: torch.Generator) -> list:
    return [[torch.randn(1, 64, TEXT, generator=generator), {"pooled_output": torch.zeros(1, POOLED)}]]


def sampling(model: Any, frames: int, size: int) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(1)
    positive, negative = (random_prompt(generator) for _ in range(2))
    noise = torch.randn(frames, 16, size // 8, size // 8, generator=generator)
    return lambda: guided(model, noise, torch.zeros_like(noise), SIGMAS, positive, negative, 4.0)


def main() -> None:
    parser = command_line(
        __doc__, frames=(8, ""), size=(256, "pixels, height and width"), width=(256, "channels"), rounds=(20, "")
    )
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    with torch.inference_mode():
        model = flux(arguments.width)
        runs = {
            name: sampling(each, arguments.frames, arguments.size)
            for name, each in (("plain", model), ("momentum", with_momentum(model, 0.98)))
        }
        seconds = {name: median(taken) for name, taken in take_turns(runs, arguments.rounds).items()}
    save(arguments.out, {"frames": arguments.frames, "size": arguments.size, "width": arguments.width, **seconds})
    print(f"plain {seconds['plain']:.3f} s, momentum {seconds['momentum']:.3f} s")
    print(f"momentum takes {seconds['momentum'] / seconds['plain']:.3f} of plain attention's time")


if __name__ == "__main__":
    main()
