"""The world's video transformer: ComfyUI's WanModel and its flow matching, with a small config.

Its latents have Wan's layout, 16 channels and four frames each after the first: the picture VAE's latents of four
frames, stacked, and the first frame four times. So stock video nodes fit, and a clip of 17 frames has 320 tokens, not
1088; a video VAE of its own would cost megabytes, and gain little on flat things.

Attention with rotary embeddings tells how far apart two places are, not where they are, nor when. Wan sees that in its
latents: its VAE's padding leaves marks along the borders, and the first frame is alone. The picture VAE leaves none, so
channels of the input say where and when.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import torch
from torch import Tensor, nn

from ..model import CONTEXT_WIDTH

CHUNK = 4  # frames in one latent
FRAMES = (9, 13, 17)  # that it has learned: one more than a multiple of CHUNK
WAVES = 4  # of time, height and width each: the channels that say when and where

TRANSFORMER_CONFIG: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 4 * CHUNK + 3 * WAVES,
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


class PlacedWan(comfy.model_base.WAN21):
    """Wan, told where and when every latent is."""

    def concat_cond(self, **kwargs: Any) -> Tensor:
        noise = kwargs["noise"]
        if noise.shape[1] != 4 * CHUNK:
            raise ValueError(
                f"Coherence Demo Model, kind wan: the latent has {noise.shape[1]} channels, expected {4 * CHUNK}. Use "
                "Empty HunyuanVideo 1.0 Latent, or encode with the VAE of the same loader."
            )
        return places(noise).to(kwargs["device"])


class FrameByFrame(nn.Module):
    """The picture VAE on clips: (B, 3, 1 + 4k, H, W) in [-1, 1] ↔ (B, 16, 1 + k, H/8, W/8).

    Of other lengths the last frames are left out, as Wan's VAE does.
    """

    def __init__(self, pictures: Any) -> None:
        super().__init__()
        self.pictures = pictures

    def encode(self, clips: Tensor) -> Tensor:
        frames = clips[:, :, : 1 + (clips.shape[2] - 1) // CHUNK * CHUNK].transpose(1, 2)
        return stack(self.pictures.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))

    def decode(self, latents: Tensor) -> Tensor:
        frames = unstack(latents)
        return self.pictures.decode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def transformer_module(
    dtype: torch.dtype,
    device: torch.device | str,
    operations=None,
    computed_in: torch.dtype | None = None,
) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its WanModel, with weights still to be loaded. ``computed_in``: where not
    ``dtype``."""
    config = TransformerConfig({**TRANSFORMER_CONFIG, "dtype": dtype})
    config.manual_cast_dtype = computed_in
    config.custom_operations = operations
    return PlacedWan(config, device=device)


def places(latents: Tensor) -> Tensor:
    """Latents (B, C, T, h, w) → (B, 3 · WAVES, T, h, w): cos(πkt/T), cos(πky/h) and cos(πkx/w), k from 1; of pictures
    (B, C, h, w) → (B, 2 · WAVES, h, w), the last two."""
    batch, _, *sizes = latents.shape
    waves = torch.arange(1, WAVES + 1, device=latents.device)[:, None]
    lines = [torch.cos(math.pi * waves * (torch.arange(n, device=latents.device) + 0.5) / n) for n in sizes]
    grids = [line.unflatten(1, [-1 if a == b else 1 for b in range(len(sizes))]) for a, line in enumerate(lines)]
    return (
        torch.cat([each.expand(-1, *sizes) for each in grids]).to(latents.dtype).expand(batch, *[-1] * (1 + len(sizes)))
    )


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
