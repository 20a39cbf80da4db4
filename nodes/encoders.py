"""Pictures and texts as vectors of the user's own encoders: CLIP_VISION and CLIP as ComfyUI loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import InputError

TEXTS = "clip_vision_model"
"""Of ComfyUI's image encoders, the kind whose vectors stand beside those of texts."""


def embed_images(clip_vision: Any, images: Tensor, progress: Callable[[], object] = lambda: None) -> Tensor:
    """(F, C). Frames are encoded one by one, so that a vector does not depend on the other frames.

    InputError where the encoder gives no vector for a whole picture.
    """
    rows = []
    for frame in images.split(1):
        vector = clip_vision.encode_image(frame[..., :3], crop=True)["image_embeds"]
        if not isinstance(vector, Tensor) or vector.ndim != 2:
            raise InputError(
                f"clip_vision ({clip_vision.model_type}) has no vector for a whole picture, expected CLIP or DINOv2. "
                "Load another file with Load CLIP Vision."
            )
        rows.append(vector.float().cpu())
        progress()
    return torch.cat(rows)


def embed_text(clip: Any, text: str, clip_vision: Any, channels: int) -> Tensor:
    """(C,): of the first 75 tokens. InputError where texts and pictures have no common space."""
    if clip_vision.model_type != TEXTS:
        raise InputError(
            f"clip_vision ({clip_vision.model_type}) cannot be compared with a prompt, expected a CLIP image encoder. "
            "Load one with Load CLIP Vision, or disconnect clip."
        )
    _require_projection(clip, channels)
    encoder = clip.cond_stage_model
    tokens = clip.tokenize(text)
    encoder.reset_clip_options()
    clip.load_model(tokens)
    encoder.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        pooled = encoder.encode_token_weights(tokens)[1]
    finally:
        encoder.reset_clip_options()
    if not isinstance(pooled, Tensor) or pooled.shape[-1] != channels:
        raise _unlike(channels)
    return pooled[0].float().cpu()


def _require_projection(clip: Any, channels: int) -> None:
    """CLIP's last layer, which puts a text beside pictures, is missing in many files: checkpoints of SD1.5, for one."""
    projections = [
        module.weight
        for name, module in clip.cond_stage_model.named_modules()
        if name.endswith("text_projection") and len(module.weight) == channels
    ]
    if not projections:
        raise _unlike(channels)
    if not any(map(_is_trained, projections)):
        raise InputError(
            "clip was loaded from a file without CLIP's text projection, so its prompts cannot be compared with "
            "pictures (checkpoints of SD1.5 lack it). Load the whole text encoder, such as clip_l.safetensors, with "
            "Load CLIP."
        )


def _unlike(channels: int) -> InputError:
    return InputError(
        f"clip has no encoder with vectors of {channels} channels, which clip_vision has. Load the text encoder "
        "that belongs to clip_vision with Load CLIP: CLIP-L for ViT-L (768 channels), CLIP-H for ViT-H (1024), CLIP-G "
        "for bigG (1280)."
    )


def _is_trained(weight: Tensor) -> bool:
    """Not what ComfyUI leaves there when a file holds none: an identity, or memory that nothing was written to."""
    weight = weight.detach().float().cpu()
    spread = float(weight.std())
    return 1e-4 < spread < 10 and not torch.equal(weight, torch.eye(*weight.shape))
