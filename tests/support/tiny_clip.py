"""A small CLIP with random weights, in ComfyUI's own classes: its image encoder, and its text encoder with CLIP's
tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel

WIDTH = 24
VISION = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 28,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 7,
    "projection_dim": WIDTH,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "max_position_embeddings": 77,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 49407,
    "vocab_size": 49408,
}


def random_weights(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.2 if weight.ndim > 1 else 0.1))


def tiny_clip_vision(seed: int = 0, **config: Any) -> ClipVisionModel:
    encoder = ClipVisionModel(VISION | config)
    random_weights(encoder.model, seed)
    return encoder


def tiny_clip(folder: Path, seed: int = 1) -> comfy.sd.CLIP:
    """With a text projection that fits :func:`tiny_clip_vision`'s vectors."""
    config = folder / "tiny_clip.json"
    config.write_text(json.dumps(TEXT))

    class Encoder(SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(
                device=device,
                textmodel_json_config=str(config),
                return_projected_pooled=False,
                dtype=dtype,
                model_options=model_options,
            )

    class Model(SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=Encoder)

    class Target:
        clip, tokenizer = Model, SD1Tokenizer
        params: ClassVar[dict[str, Any]] = {}

    clip = comfy.sd.CLIP(Target(), parameters=0)
    random_weights(clip.cond_stage_model, seed)
    return clip
