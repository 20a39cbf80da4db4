"""ComfyUI's flags for the type of a diffusion model's weights, as they are when models are loaded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from comfy.cli_args import args

FLAGS = {"--fp16-unet": torch.float16, "--bf16-unet": torch.bfloat16, "--fp8_e4m3fn-unet": torch.float8_e4m3fn}
"""Startup flag → dtype of the weights."""


@contextmanager
def started_with(flag: str) -> Iterator[None]:
    """Models loaded inside are as in a ComfyUI that was started with ``flag``; "" for none."""
    name = flag.strip("-").replace("-", "_")
    if flag:
        setattr(args, name, True)
    try:
        yield
    finally:
        if flag:
            setattr(args, name, False)
