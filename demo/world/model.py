"""The world's models, and their weights: the picture model is of ComfyUI's SD1.5 classes, as in :mod:`..model`, with
more convolutions at 16×16.

Each loader takes weights as a training left them, or else the repository's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import torch
from comfy.taesd.taesd import TAESD

from ...attention.forms import InflationWeights, inflated
from .. import model
from ..model import (
    UNET_CONFIG,
    VIDEO_FORM,
    DemoTextEncoder,
    DemoTokenizer,
    by_layer,
    clip_of,
    load_unet,
    number_formats,
    patcher_of,
    read,
)
from ..motion import FRAMES
from .latents import set_encoder
from .picture_transformer import picture_transformer_module
from .transformer import CHUNK, FrameByFrame, transformer_module

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
WORLD_UNET_CONFIG: dict[str, Any] = {
    **UNET_CONFIG,
    "num_res_blocks": [2, 2],
    "transformer_depth": [0, 1, 0, 1],
    "transformer_depth_output": [0, 1, 1, 0, 1, 1],
}


class WorldTokenizer(DemoTokenizer):
    """With merges for the words of the world's captions."""

    folder = FOLDER / "tokenizer"


class WorldSD1Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=WorldTokenizer)


class WorldTextEncoder(DemoTextEncoder):
    tokenizer = WorldTokenizer


class WorldClip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=WorldTextEncoder)


def unet_module(dtype: torch.dtype, device: torch.device | str, operations=None) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its UNet, with weights still to be loaded."""
    return model.unet_module(dtype, device, operations, unet_config=WORLD_UNET_CONFIG)


def load_model(
    weights: dict[str, torch.Tensor] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """``weights``: the UNet's. ``disable_dynamic``: as in :func:`..model.load_model`."""
    patcher = load_unet(weights or shipped("image"), WORLD_UNET_CONFIG)
    patcher.cached_patcher_init = (load_model, (weights,))
    return patcher


def load_video_model(
    weights: dict[str, torch.Tensor] | None = None, layers: dict[str, torch.Tensor] | None = None
) -> comfy.model_patcher.ModelPatcher:
    """``weights``: the UNet's; ``layers``: the temporal layers'."""
    temporal = InflationWeights(VIDEO_FORM, "DemoConfig", by_layer(layers or shipped("video")), 0, FRAMES)
    unet = load_model(weights)
    return inflated(unet, VIDEO_FORM, temporal, layers="*", strength=1.0, asked_by="CoherenceDemoModel")


def load_transformer(
    weights: dict[str, torch.Tensor] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """``weights``: the WanModel's. ``disable_dynamic``: as in :func:`..model.load_model`."""
    return _loaded(load_transformer, transformer_module, weights, "transformer")


def load_picture_transformer(
    weights: dict[str, torch.Tensor] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """``weights``: the Flux's. ``disable_dynamic``: as in :func:`..model.load_model`."""
    return _loaded(load_picture_transformer, picture_transformer_module, weights, "flux")


def _loaded(
    loader: Callable[..., comfy.model_patcher.ModelPatcher],
    module: Callable[..., comfy.model_base.BaseModel],
    weights: dict[str, torch.Tensor] | None,
    part: str,
) -> comfy.model_patcher.ModelPatcher:
    """``module`` with ``weights``, or the repository's of ``part``; ``loader``: the function that ComfyUI calls for
    another copy."""
    own = weights or shipped(part)
    dtype, device, computed_in = number_formats(own)
    patcher = patcher_of(module(dtype, device, computed_in=computed_in), own)
    patcher.cached_patcher_init = (loader, (weights,))
    return patcher


def load_clip(weights: dict[str, torch.Tensor] | str = "text") -> comfy.sd.CLIP:
    """``weights``: the text encoder's, or which of the repository's: the video model has ``video_text``."""
    given = shipped(weights) if isinstance(weights, str) else weights
    return clip_of(given, WorldSD1Tokenizer, WorldClip)


def load_vae(weights: dict[str, torch.Tensor] | None = None) -> comfy.sd.VAE:
    """``weights``: the decoder's; the encoder is set by hand."""
    vae = TAESD()
    set_encoder(vae.taesd_encoder)
    vae.vae_scale.data.fill_(0.18215)  # SD1.5's latent format: models then see the encoder's output as it is
    vae.taesd_decoder.load_state_dict(weights or shipped("decoder"))
    return comfy.sd.VAE(sd=vae.state_dict())


def load_clip_vae(weights: dict[str, torch.Tensor] | None = None) -> comfy.sd.VAE:
    """The picture VAE, frame by frame, with the transformer's latents. ``weights``: the decoder's."""
    vae = load_vae(weights)
    frames = vae.first_stage_model = FrameByFrame(vae.first_stage_model)
    vae.patcher = type(vae.patcher)(frames, load_device=vae.device, offload_device=vae.patcher.offload_device)
    vae.latent_dim, vae.latent_channels = 3, 4 * CHUNK
    vae.upscale_ratio = (lambda latents: max(0, 1 + CHUNK * (latents - 1)), 8, 8)
    vae.downscale_ratio = (lambda frames: (frames - 1) // CHUNK + 1, 8, 8)
    vae.upscale_index_formula = vae.downscale_index_formula = (CHUNK, 8, 8)
    vae.memory_used_encode = _for_clips(vae.memory_used_encode, 1)
    vae.memory_used_decode = _for_clips(vae.memory_used_decode, CHUNK)
    return vae


def _for_clips(of_pictures: Callable[[Sequence[int], torch.dtype], float], frames: int) -> Callable[..., float]:
    """Memory for clips (B, C, T, h, w), from that for pictures; ``frames``: how many each of the T is."""
    return lambda shape, dtype: frames * shape[2] * of_pictures((*shape[:2], *shape[3:]), dtype)


def shipped(part: str) -> dict[str, torch.Tensor]:
    """The repository's weights of ``image``, ``text``, ``decoder``...; FileNotFoundError says how to get them."""
    return read(WEIGHTS / f"world_{part}.safetensors")
