"""UNets: checkpoints of the least size that ComfyUI's model detection takes, and narrower models without a file.

Detection fixes the 320 channels, the context width and, past SD1.5, the transformer depths of the input
blocks; levels, residual blocks, the middle and the output depths are read from the weights and kept minimal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .weights import Weights, build_model, draw, named_shapes, prefixed

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

DETECTED, NARROW = 320, 128
"""Channels that detection takes, and of the models that are built."""
# Queries and keys of unit tokens have this standard deviation, their logits its square.
SHARP = {r".*\.attn1\.to_[qk]\.weight": 2.0}

SD15 = {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
    "num_heads": 8,
}
SD20 = {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 1024,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
}
SDXL = {
    "num_res_blocks": [1, 2],
    "channel_mult": [1, 1],
    "transformer_depth": [0, 2, 5],  # KOALA 700M, the smallest of ComfyUI's SDXL classes
    "transformer_depth_output": [0, 0, 1, 1, 1],
    "context_dim": 2048,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
IP2P = SD15 | {"in_channels": 8}  # beside the latent, that of the picture to edit
SVD = {
    "in_channels": 8,
    "num_res_blocks": [1, 1, 6],  # most of the eight blocks where latents are smallest
    "channel_mult": [1, 1, 1],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [0] * 11,
    "context_dim": 1024,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 768,
    "use_temporal_resblock": True,
    "use_temporal_attention": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
}


def build(config: str, unet_config: Mapping[str, Any]) -> ModelPatcher:
    """A narrow model of the class ``config`` of comfy.supported_models."""
    widths = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": NARROW}
    blocks = {"transformer_depth_middle": 1, "use_spatial_transformer": True, "legacy": False}
    classes = {"adm_in_channels": None, "use_temporal_attention": False}
    return build_model(config, {**widths, **blocks, **classes, **unet_config}, SHARP)


def unet(config: dict[str, Any], seed: int, channels: int = DETECTED) -> Weights:
    """Half-precision weights of ComfyUI's UNetModel."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {"in_channels": 4, "transformer_depth_middle": 1} | config
    shapes = named_shapes(
        lambda: UNetModel(
            image_size=32,
            out_channels=4,
            model_channels=channels,
            use_spatial_transformer=True,
            legacy=False,
            operations=comfy.ops.disable_weight_init,
            **config,
        )
    )
    return draw(shapes, SHARP, seed, torch.float16)


def vae(seed: int) -> Weights:
    """A TAESD: 4 latent channels, 8 pixels a latent."""
    from comfy.taesd.taesd import TAESD

    return draw(named_shapes(TAESD), {"vae_shift": 0.0}, seed)


def identity_clip_l(seed: int) -> Weights:
    """A whole CLIP-L whose layers pass the embeddings through, a few hundred KB on disk when pickled.

    Every layer is zero weights expanded from one number. Row i of the token table is r[i : i + 768] of one
    random vector, so tokens differ. Only ``torch.save`` keeps such strides; safetensors would write 250 MB.
    """
    import comfy.ops
    from comfy.clip_model import CLIPTextModel_

    config = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    }
    operations = comfy.ops.disable_weight_init
    shapes = named_shapes(lambda: CLIPTextModel_(config, torch.float32, "meta", operations))
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float16)
    weights = {
        name: (one if re.search(r"norm\d?\.weight$", name) else zero).expand(shape) for name, shape in shapes.items()
    }
    generator = torch.Generator().manual_seed(seed)
    for table in ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight"):
        rows, width = shapes[table]
        values = torch.randn(rows + width - 1, generator=generator).to(torch.float16)
        weights[table] = values.as_strided((rows, width), (1, 1))
    return weights


def _with_text_encoder(config: dict[str, Any], seed: int, dtype: torch.dtype = torch.float16) -> Weights:
    """A whole checkpoint; ``dtype`` is that of its CLIP-L."""
    clip = {name: weight.to(dtype) for name, weight in identity_clip_l(seed=1).items()}
    return {
        **prefixed("model.diffusion_model.", unet(config, seed)),
        **prefixed("cond_stage_model.transformer.text_model.", clip),
        **prefixed("first_stage_model.", vae(seed=8)),
    }


def write_sd15(path: Path) -> None:
    """A whole checkpoint: UNet with attention in both levels and the middle, CLIP-L, VAE (44 + 123 + 2 M)."""
    torch.save(_with_text_encoder(SD15, seed=15), path)


def write_as_safetensors(path: Path, config: dict[str, Any], seed: int) -> None:
    """A whole checkpoint as most are: safetensors, 210 MB, since it writes all of the CLIP-L."""
    from safetensors.torch import save_file

    weights = _with_text_encoder(config, seed, torch.float8_e4m3fn)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


def _write(path: Path, config: dict[str, Any], seed: int) -> None:
    from safetensors.torch import save_file

    model = prefixed("model.diffusion_model.", unet(config, seed))
    save_file(model | prefixed("first_stage_model.", vae(seed=8)), path)


def write_sd20(path: Path) -> None:
    """UNet and VAE of an SD2 checkpoint (45 + 2 M), without its text encoder (354 M)."""
    _write(path, SD20, seed=20)


def write_sdxl(path: Path) -> None:
    """UNet and VAE of an SDXL checkpoint (73 + 2 M), without its two text encoders (817 M)."""
    _write(path, SDXL, seed=10)


def write_svd(path: Path) -> None:
    """UNet and VAE of a Stable Video Diffusion checkpoint (141 + 2 M), without its image encoder (632 M)."""
    _write(path, SVD, seed=14)
