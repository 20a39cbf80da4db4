"""Relatives of the families: models whose attention the tap must find, on which not everything is tried."""

from __future__ import annotations

import torch

from .dits import write_ltxav
from .families import Family, built
from .pictures import COSMOS, FLUX, FLUX2, HIDREAM, KANDINSKY5, Z_IMAGE

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
_WAN_SHARP = r".*self_attn\.norm_[qk]\.weight"
_HUNYUAN = {
    "image_model": "hunyuan_video",
    "vec_in_dim": None,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 1,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": False,
    "meanflow": False,
    "meanflow_sum": False,
}
_REFERENCE = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
_PICTURE = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(6))

_NOT_IN_LUMINA2 = {"z_image_modulation", "time_scale", "pad_tokens_multiple"}
_LUMINA2 = {name: value for name, value in Z_IMAGE.items() if name not in _NOT_IN_LUMINA2}

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
        sharp=_WAN_SHARP,
        audio_embed=(1, 25, 32, 12),
        control_video=_CLIP,
        reference_latents=[_REFERENCE],
    ),
    "Wan 2.1 HuMo": built(
        "WAN21_HuMo",
        {**_WAN, "model_type": "humo", "num_layers": 2},
        _CLIP,
        sharp=_WAN_SHARP,
        audio_embed=(1, _FRAMES, 8, 5, 1280),
        reference_latents=[_REFERENCE],
    ),
    "Wan 2.1 SCAIL": built(
        "WAN21_SCAIL",
        {**_WAN, "model_type": "scail", "num_layers": 2, "in_dim": 20},
        _CLIP,
        sharp=_WAN_SHARP,
        pose_video_latent=(1, 16, _FRAMES, 4, 4),
        reference_latents=[_REFERENCE],
    ),
    "Wan 2.2 Animate": built(
        "WAN22_Animate",
        {**_WAN, "model_type": "animate", "num_layers": 5, "in_dim": 36},
        _CLIP,
        sharp=_WAN_SHARP,
        pose_video_latent=(1, 16, _FRAMES - 1, 8, 8),
    ),
    "LTX-2": Family(
        file="tiny_ltxav.safetensors",
        kind="diffusion_models",
        write=write_ltxav,
        base="LTXAV",
        config="LTXAV",
        latent_shape=(1, 128, 2, 4, 4),
        frames_axis=2,
        context=(20, 512),
        settings={"frame_rate": 25},
        sound_shape=(1, 8, 5, 16),
    ),
    "HunyuanVideo 1.5": built(
        "HunyuanVideo15",
        {
            **_HUNYUAN,
            "in_channels": 65,
            "out_channels": 32,
            "axes_dim": [8, 12, 12],
            "patch_size": [1, 1, 1],
            "byt5": True,
            "use_cond_type_embedding": True,
            "vision_in_dim": 32,
        },
        (1, 32, _FRAMES, 4, 4),
        sharp=r".*(query|key)_norm\.weight",
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
        sharp=r".*(query|key)_norm\.weight",
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
        sharp=r".*\.norm_[qk]\.weight",
        attention_mask=torch.ones(1, 7, dtype=torch.long),
        reference_latents=[_PICTURE],
    ),
    "Lumina 2": built(
        "Lumina2",
        {**_LUMINA2, "dim": 64, "n_heads": 2, "n_kv_heads": 2},
        (4, 16, 8, 8),
        sharp=r".*\.[qk]_norm\.weight",
        attention_mask=torch.ones(1, 7, dtype=torch.long),
    ),
    "Z-Image Omni": built(
        "ZImage",
        {**Z_IMAGE, "siglip_feat_dim": 24},
        (4, 16, 8, 8),
        sharp=r".*\.[qk]_norm\.weight",
        padded_to=32,
        reference_latents=[_PICTURE],
    ),
    "Flux.2": built("Flux2", FLUX2, (4, 128, 4, 4), sharp=r".*(query|key)_norm\.weight"),
    "Cosmos-Predict2": built("CosmosT2IPredict2", COSMOS, (4, 16, 1, 8, 8), sharp=r".*self_attn\.[qk]_norm\.weight"),
    "Cosmos-Predict2 Video": built(
        "CosmosI2VPredict2", {**COSMOS, "in_channels": 17}, _CLIP, sharp=r".*self_attn\.[qk]_norm\.weight"
    ),
    "HiDream": built(
        "HiDream",
        HIDREAM,
        (4, 16, 8, 8),
        sharp=r".*[qk]_rms_norm\.weight",
        pooled_output=(1, 32),
        conditioning_llama3=(1, 3, 5, 40),
    ),
    "Kandinsky 5 Image": built(
        "Kandinsky5Image",
        KANDINSKY5,
        (4, 16, 8, 8),
        sharp=r".*self_attention\.(query|key)_norm\.weight",
        pooled_output=(1, 32),
    ),
    "Kandinsky 5": built(
        "Kandinsky5",
        {**KANDINSKY5, "visual_embed_dim": 132},
        _CLIP,
        sharp=r".*self_attention\.(query|key)_norm\.weight",
        pooled_output=(1, 32),
    ),
    "Mochi": built(
        "GenmoMochi",
        {
            "image_model": "mochi_preview",
            "patch_size": 2,
            "in_channels": 12,
            "hidden_size_x": 64,
            "hidden_size_y": 32,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio_x": 192.0,  # ComfyUI asserts 12288 channels
            "mlp_ratio_y": 2.0,
            "learn_sigma": False,
            "use_t5": True,
            "t5_feat_dim": 48,
            "qkv_bias": False,
            "qk_norm": True,
        },
        (1, 12, _FRAMES, 8, 8),
        sharp=r".*[qk]_norm_x\.weight",
        attention_mask=torch.ones(1, 7, dtype=torch.long),
    ),
    "HunyuanImage": built(
        "HunyuanImage21",
        {
            **_HUNYUAN,
            "in_channels": 64,
            "out_channels": 64,
            "axes_dim": [16, 16],
            "patch_size": [1, 1],
            "byt5": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
        },
        (4, 64, 4, 4),
        sharp=r".*(query|key)_norm\.weight",
    ),
    "MiniMax H3": built(
        "MiniMaxH3",
        {
            "image_model": "minimax_h3",
            "hidden_size": 64,
            "num_layers": 2,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "ffn_hidden_size": 96,
            "latents_dim": 24,
            "audio_latents_dim": 32,
            "text_dim": 48,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
            "rope_inv_freq_len": 4,
        },
        (1, 24, _FRAMES, 8, 8),
        sharp=r".*[qk]_norm\.weight",
        sound_shape=(1, 32, 2, 5),
    ),
}
