"""Small picture transformers, built from ComfyUI's own classes: the stock loaders know most by their full width."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .weights import build_model, draw, named_shapes

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_AXES = (8, 12, 12)
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [*_AXES],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
SD3: dict[str, Any] = {
    "input_size": None,
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 32,
    "num_patches": 1024,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 2,
    "adm_in_channels": 32,
    "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}},
    "x_block_self_attn_layers": [0],
}
QWEN_IMAGE: dict[str, Any] = {
    "image_model": "qwen_image",
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": _AXES,
}
Z_IMAGE: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "n_layers": 2,
    "n_refiner_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 8,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "qk_norm": True,
    "cap_feat_dim": 48,
    "axes_dims": [*_AXES],
    "axes_lens": [64, 64, 64],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
KREA2: dict[str, Any] = {
    "image_model": "krea2",
    "features": 128,
    "tdim": 64,
    "txtdim": 40,
    "heads": 4,
    "kvheads": 2,
    "multiplier": 2,
    "layers": 2,
    "patch": 2,
    "channels": 16,
    "txtlayers": 3,
    "txtheads": 4,
    "txtkvheads": 4,
}
_COSMOS: dict[str, Any] = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 48,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}
FLUX2: dict[str, Any] = {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 3.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": True,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
HIDREAM: dict[str, Any] = {
    "image_model": "hidream",
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": [48, 40],
    "text_emb_dim": 32,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "axes_dims_rope": _AXES,
    "max_resolution": [16, 16],
    "llama_layers": [0, 1, 2, 2],
}
KANDINSKY5: dict[str, Any] = {
    "image_model": "kandinsky5",
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "visual_embed_dim": 64,
    "in_text_dim": 48,
    "in_text_dim2": 32,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": _AXES,
}
ANIMA = {"image_model": "anima", **_COSMOS}
COSMOS = {"image_model": "cosmos_predict2", **_COSMOS}

_FLUX2_KLEIN: dict[str, Any] = {
    **FLUX2,
    "context_in_dim": 768,
    "hidden_size": 128,
    "num_heads": 1,
    "axes_dim": [32, 32, 32, 32],
    "guidance_embed": False,
}
_FLUX2_VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 32,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
    "batch_norm_latent": True,
}


def write_flux2(path: Path) -> None:
    """Flux.2 for the texts of a CLIP-L, of one head: 1 M. Its loader reads the width from the weights."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux
    from safetensors.torch import save_file

    operations = comfy.ops.disable_weight_init
    shapes = named_shapes(lambda: Flux(dtype=torch.float32, operations=operations, **_FLUX2_KLEIN))
    save_file(draw(shapes, {r".*(query|key)_norm\.weight": 2.0}, seed=20), path)


def write_flux2_vae(path: Path) -> None:
    """Flux.2's VAE with a decoder of a quarter of the width; its loader fixes the encoder's, 34 M."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from safetensors.torch import save_file

    decoder = {**_FLUX2_VAE, "ch": 32}
    shapes = named_shapes(lambda: AutoencoderKL(ddconfig=_FLUX2_VAE, embed_dim=32, decoder_ddconfig=decoder))
    save_file(draw(shapes, {r"bn\.running_mean": 0.0}, seed=26, dtype=torch.float16), path)


def build(config: str, unet_config: dict[str, Any], sharp: str, seed: int = 0) -> ModelPatcher:
    """A model of the class ``config`` of comfy.supported_models, of unit-variance random weights.

    ``sharp``: a regular expression for the names of the weights, of queries' norms as a rule, that are raised until
    attention is sharp.
    """
    return build_model(config, unet_config, {sharp: 3.0} if sharp else {}, seed)
