"""The world's picture transformer: ComfyUI's Flux class and its flow matching, with a small config."""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import torch

from ..model import CONTEXT_WIDTH

FLUX_CONFIG: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": CONTEXT_WIDTH,
    "context_in_dim": CONTEXT_WIDTH,
    "hidden_size": 256,
    "mlp_ratio": 1.75,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 24, 24],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}


class PictureTransformerConfig(comfy.supported_models.FluxSchnell):
    """Flux without distilled guidance, in the picture VAE's latents; never used for detection."""

    unet_config: ClassVar[dict] = {}
    sampling_settings: ClassVar[dict] = {"multiplier": 1.0, "shift": 2.0}
    latent_format = comfy.latent_formats.SD15


def picture_transformer_module(
    dtype: torch.dtype, device: torch.device | str, operations=None
) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its Flux, with weights still to be loaded."""
    config = PictureTransformerConfig({**FLUX_CONFIG, "dtype": dtype})
    config.custom_operations = operations
    return comfy.model_base.Flux(config, model_type=comfy.model_base.ModelType.FLOW, device=device)
