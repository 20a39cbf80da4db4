"""The world's picture transformer: ComfyUI's Flux class and its flow matching, with a small config.

Text and picture are read together in every layer. As for :mod:`.transformer`, channels of the input say where a latent
is: rotary embeddings tell only how far apart two are.
"""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import torch
from torch import Tensor

from ..model import CONTEXT_WIDTH
from .transformer import WAVES, places

CHANNELS = 4  # of the picture VAE's latents

FLUX_CONFIG: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": CHANNELS + 2 * WAVES,
    "out_channels": CHANNELS,
    "vec_in_dim": CONTEXT_WIDTH,
    "context_in_dim": CONTEXT_WIDTH,
    "hidden_size": 256,
    "mlp_ratio": 1.5,
    "num_heads": 4,
    "depth": 1,
    "depth_single_blocks": 5,
    "axes_dim": [16, 24, 24],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}


class PictureTransformerConfig(comfy.supported_models.FluxSchnell):
    """Flux without distilled guidance, in the picture VAE's latents; never used for detection, only constructed
    here."""

    unet_config: ClassVar[dict] = {}
    sampling_settings: ClassVar[dict] = {"multiplier": 1.0, "shift": 2.0}
    latent_format = comfy.latent_formats.SD15


class PlacedFlux(comfy.model_base.Flux):
    """Flux, told where every latent is."""

    def concat_cond(self, **kwargs: Any) -> Tensor:
        noise = kwargs["noise"]
        if noise.ndim != 4 or noise.shape[1] != CHANNELS:
            raise ValueError(
                f"Coherence Demo Model, kind flux: the latent is {tuple(noise.shape)}, expected (batch, {CHANNELS}, "
                "height, width). Use Empty Latent Image, or encode with the VAE of the same loader."
            )
        return places(noise).to(kwargs["device"])


def picture_transformer_module(
    dtype: torch.dtype,
    device: torch.device | str,
    operations=None,
    computed_in: torch.dtype | None = None,
) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its Flux, with weights still to be loaded. ``computed_in``: where not ``dtype``."""
    config = PictureTransformerConfig({**FLUX_CONFIG, "dtype": dtype})
    config.manual_cast_dtype = computed_in
    config.custom_operations = operations
    return PlacedFlux(config, model_type=comfy.model_base.ModelType.FLOW, device=device)
