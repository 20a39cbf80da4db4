"""Relatives of the families: models whose attention the tap must find, on which not everything is tried."""

from __future__ import annotations

import torch

from .families import Family, built
from .pictures import FLUX

_FRAMES = 3
_WAN = {
    "image_model": "wan2.1",
    "dim": 128,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 48,
    "num_heads": 2,
}
_CLIP = (1, 16, _FRAMES, 8, 8)
_REFERENCE = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(5))

RELATIVES: dict[str, Family] = {
    "Wan 2.2 S2V": built(
        "WAN22_S2V",
        {
            **_WAN,
            "model_type": "s2v",
            "num_layers": 2,
            "audio_dim": 32,
            "num_audio_token": 2,
            "audio_inject_layers": [0],
        },
        _CLIP,
        audio_embed=(1, 25, 32, 12),
        control_video=_CLIP,
        reference_latents=[_REFERENCE],
    ),
    "Wan 2.1 HuMo": built(
        "WAN21_HuMo",
        {**_WAN, "model_type": "humo", "num_layers": 2},
        _CLIP,
        audio_embed=(1, _FRAMES, 8, 5, 1280),
        reference_latents=[_REFERENCE],
    ),
    "Wan 2.1 SCAIL": built(
        "WAN21_SCAIL",
        {**_WAN, "model_type": "scail", "num_layers": 2, "in_dim": 20},
        _CLIP,
        pose_video_latent=(1, 16, _FRAMES, 4, 4),
        reference_latents=[_REFERENCE],
    ),
    "Wan 2.2 Animate": built(
        "WAN22_Animate",
        {**_WAN, "model_type": "animate", "num_layers": 5, "in_dim": 36},
        _CLIP,
        pose_video_latent=(1, 16, _FRAMES - 1, 8, 8),
    ),
    "HunyuanVideo 1.5": built(
        "HunyuanVideo15",
        {
            "image_model": "hunyuan_video",
            "in_channels": 65,
            "out_channels": 32,
            "vec_in_dim": None,
            "context_in_dim": 48,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 2,
            "depth_single_blocks": 1,
            "axes_dim": [8, 12, 12],
            "theta": 256,
            "patch_size": [1, 1, 1],
            "qkv_bias": True,
            "guidance_embed": False,
            "byt5": True,
            "meanflow": False,
            "use_cond_type_embedding": True,
            "vision_in_dim": 32,
            "meanflow_sum": False,
        },
        (1, 32, _FRAMES, 4, 4),
        pooled_output=(1, 32),
        conditioning_byt5small=(1, 5, 1472),
    ),
    "Chroma": built(
        "Chroma",
        {
            **{name: value for name, value in FLUX.items() if name != "guidance_embed"},
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 64,
            "n_layers": 2,
        },
        (4, 16, 8, 8),
    ),
    "OmniGen2": built(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "hidden_size": 64,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 32,
            "axes_dim_rope": (8, 12, 12),
            "axes_lens": (64, 64, 64),
            "text_feat_dim": 48,
        },
        (4, 16, 8, 8),
        attention_mask=torch.ones(1, 7, dtype=torch.long),
    ),
}
