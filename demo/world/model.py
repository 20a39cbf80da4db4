"""The world's picture model: ComfyUI's own SD1.5 classes, as in :mod:`..model`, with more convolutions at 16×16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.taesd.taesd import TAESD

from ..model import CONTEXT_WIDTH, MAX_TOKENS, UNET_CONFIG, DemoConfig, SmallVocabulary
from .latents import set_encoder
from .transformer import transformer_module

FOLDER = Path(__file__).parent
TEXT_LAYERS = 2
WORLD_UNET_CONFIG: dict[str, Any] = {
    **UNET_CONFIG,
    "num_res_blocks": [2, 2],
    "transformer_depth": [0, 1, 0, 1],
    "transformer_depth_output": [0, 1, 1, 0, 1, 1],
}


class WorldTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's byte-level tokenizer with merges for the words of the world's captions; other words fall into bytes."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path=str(FOLDER / "tokenizer"),
            max_length=MAX_TOKENS,
            embedding_directory=embedding_directory,
            embedding_size=CONTEXT_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class WorldSD1Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=WorldTokenizer)


class WorldTextEncoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        tokens = WorldTokenizer()
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=MAX_TOKENS,
            model_class=SmallVocabulary,
            return_projected_pooled=False,
            special_tokens={"start": tokens.start_token, "end": tokens.end_token, "pad": tokens.pad_token},
            textmodel_json_config={
                "num_hidden_layers": TEXT_LAYERS,
                "hidden_size": CONTEXT_WIDTH,
                "num_attention_heads": 4,
                "intermediate_size": 4 * CONTEXT_WIDTH,
                "hidden_act": "quick_gelu",
                "max_position_embeddings": MAX_TOKENS,
                "eos_token_id": tokens.end_token,
                "vocab_size": len(tokens.inv_vocab),
            },
            model_options=model_options or {},
        )


class WorldClip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=WorldTextEncoder)


def unet_module(dtype: torch.dtype, device: torch.device | str, operations=None) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its UNet, with weights still to be loaded."""
    config = DemoConfig({**WORLD_UNET_CONFIG, "dtype": dtype})
    config.custom_operations = operations
    return comfy.model_base.BaseModel(config, device=device)


def load_model(weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """``weights``: the UNet's, as a training left them."""
    management = comfy.model_management
    dtype = management.unet_dtype(model_params=comfy.utils.calculate_parameters(weights))
    return _patcher(unet_module(dtype, management.unet_offload_device()), weights)


def load_transformer(weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """``weights``: the WanModel's, as a training left them."""
    return _patcher(transformer_module(torch.float32, comfy.model_management.unet_offload_device()), weights)


def _patcher(model: comfy.model_base.BaseModel, weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    model.diffusion_model.load_state_dict(weights)
    management = comfy.model_management
    devices = {"load_device": management.get_torch_device(), "offload_device": management.unet_offload_device()}
    return comfy.model_patcher.ModelPatcher(model, **devices)


def load_clip(weights: dict[str, torch.Tensor]) -> comfy.sd.CLIP:
    """``weights``: the text encoder's, as a training left them."""
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(WorldSD1Tokenizer, WorldClip),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict={f"clip_l.{name}": tensor for name, tensor in weights.items()},
    )


def load_vae(weights: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    """``weights``: the decoder's, as a training left them; the encoder is set by hand."""
    vae = TAESD()
    set_encoder(vae.taesd_encoder)
    vae.vae_scale.data.fill_(0.18215)  # SD1.5's latent format: models then see the encoder's output as it is
    vae.taesd_decoder.load_state_dict(weights)
    return comfy.sd.VAE(sd=vae.state_dict())
