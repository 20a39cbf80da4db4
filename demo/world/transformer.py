"""The world's video transformer: ComfyUI's WanModel and its flow matching, with a small config.

Its latents have Wan's layout, 16 channels and four frames each after the first: the picture VAE's latents of four
frames, stacked, and the first frame four times. So stock video nodes fit, and a clip of 17 frames has 320 tokens, not
1088; a video VAE of its own would cost megabytes, and gain little on flat things.
"""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import torch
from torch import Tensor

from ..model import CONTEXT_WIDTH

CHUNK = 4  # frames in one latent
FRAMES = (9, 13, 17)  # that it has learned: one more than a multiple of CHUNK

TRANSFORMER_CONFIG: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 4 * CHUNK,
    "out_dim": 4 * CHUNK,
    "dim": 256,
    "ffn_dim": 1024,
    "freq_dim": 256,
    "text_dim": CONTEXT_WIDTH,
    "num_heads": 4,
    "num_layers": 5,
    "patch_size": (1, 2, 2),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}


class StackedFrames(comfy.latent_formats.LatentFormat):
    """The picture VAE's latents, CHUNK frames in one."""

    latent_channels = 4 * CHUNK
    latent_dimensions = 3
    temporal_downscale_ratio = CHUNK
    scale_factor = 0.18215


class TransformerConfig(comfy.supported_models.WAN21_T2V):
    """Wan 2.1 with another latent format; never used for detection, only constructed here."""

    unet_config: ClassVar[dict] = {}
    sampling_settings: ClassVar[dict] = {"shift": 3.0}
    latent_format = StackedFrames


def transformer_module(dtype: torch.dtype, device: torch.device | str, operations=None) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its WanModel, with weights still to be loaded."""
    config = TransformerConfig({**TRANSFORMER_CONFIG, "dtype": dtype})
    config.custom_operations = operations
    return comfy.model_base.WAN21(config, device=device)


def stack(latents: Tensor) -> Tensor:
    """Frames' latents (B, 1 + 4k, 4, h, w) → (B, 16, 1 + k, h, w)."""
    if latents.shape[1] % CHUNK != 1:
        raise ValueError(f"a clip has {latents.shape[1]} frames, expected one more than a multiple of {CHUNK}")
    first = latents[:, :1].expand(-1, CHUNK, -1, -1, -1)
    chunks = torch.cat([first, latents[:, 1:]], dim=1).unflatten(1, (-1, CHUNK))
    return chunks.flatten(2, 3).transpose(1, 2)


def unstack(latents: Tensor) -> Tensor:
    """What :func:`stack` did, undone; of the first frame's four, the mean."""
    chunks = latents.transpose(1, 2).unflatten(2, (CHUNK, -1))
    return torch.cat([chunks[:, :1].mean(2), chunks[:, 1:].flatten(1, 2)], dim=1)
