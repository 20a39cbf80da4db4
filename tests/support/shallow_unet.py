"""The demo model's UNet with fewer blocks and random weights: torch.compile traces it in a fraction of the time."""

from __future__ import annotations

from typing import Any

import torch
from coherence.demo.model import UNET_CONFIG, load_unet, unet_module
from tiny_models.unets import SHARP
from tiny_models.weights import draw, named_shapes

CONFIG = UNET_CONFIG | {
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_middle": -2,  # no middle block
    "transformer_depth_output": [1, 0],
}
"""Two transformers, one on the way down and one on the way up."""


def shallow_unet() -> Any:
    """A MODEL for the demo model's latents and prompts."""
    shapes = named_shapes(lambda: unet_module(torch.float32, "meta", unet_config=CONFIG).diffusion_model)
    return load_unet(draw(shapes, SHARP, seed=3), CONFIG)
