"""Picture models whose latents have three dimensions, built from ComfyUI's classes: stock loaders hard-code widths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .weights import draw

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_COSMOS = {
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

PICTURES: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "qwen_image": (
        "QwenImage",
        {
            "image_model": "qwen_image",
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "axes_dims_rope": (8, 12, 12),
        },
        (7, 48),
    ),
    "krea2": (
        "Krea2",
        {
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
        },
        (7, 120),
    ),
    "anima": ("Anima", {"image_model": "anima", **_COSMOS}, (7, 48)),
    "cosmos_predict2": ("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **_COSMOS}, (7, 48)),
}
"""Name → ComfyUI's class in ``supported_models``, its config, and tokens and width of the text. 16 latent channels."""


def load_picture_model(name: str) -> ModelPatcher:
    """A small random model of the class."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    class_name, config, _ = PICTURES[name]
    built = getattr(comfy.supported_models, class_name)(config)
    built.set_inference_dtype(torch.float32, None)
    model = built.get_model({}, "", device="cpu")
    # Anima's adapter for T5 tokens has a fixed width of 1024, and these texts do not go through it.
    shapes = {key: x.shape for key, x in model.diffusion_model.state_dict().items() if "llm_adapter" not in key}
    model.diffusion_model.load_state_dict(draw(shapes, {}, seed=1), strict=False)
    return ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def picture_conditioning(name: str) -> list[list[Any]]:
    """CONDITIONING: unit normal text."""
    *_, text = PICTURES[name]
    return [[torch.randn(1, *text, generator=torch.Generator().manual_seed(1)), {}]]
