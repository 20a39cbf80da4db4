"""The first demo model, of five shapes: ComfyUI's SD1.5 classes (UNet, CLIP text encoder, TAESD) with a small config.

Everything that hooks into a Stable Diffusion 1.5 checkpoint hooks into this one too: eps-prediction, SD1.5's noise
schedule and latent format, ``input``/``middle``/``output`` blocks with ``attn1`` and ``attn2`` at every level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.clip_model import CLIPTextModel

from ..attention.forms import Form, inflated
from ..files.weights_file import load

FOLDER = Path(__file__).parent
UNET_FILE, TEXT_ENCODER_FILE, VAE_FILE, VIDEO_FILE, VIDEO_TEXT_ENCODER_FILE = (
    FOLDER / f"coherence_demo_{part}.safetensors"
    for part in ("unet", "text_encoder", "vae", "video", "video_text_encoder")
)
VIDEO_FORM = Form("temporal", "after_feed_forward", "self", ordered=True)
"""The video model is the picture model with temporal layers that know the frames' order."""
CONTEXT_WIDTH = 128
MAX_TOKENS = 32

UNET_CONFIG = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": CONTEXT_WIDTH,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}


class DemoConfig(comfy.supported_models.SD15):
    """SD1.5 with head width instead of head count; never used for detection, only constructed here."""

    unet_config: ClassVar[dict] = {}
    unet_extra_config: ClassVar[dict] = {}


class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's byte-level tokenizer with merges for the words of the captions; other words fall into bytes."""

    folder = FOLDER / "tokenizer"

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path=str(self.folder),
            max_length=MAX_TOKENS,
            embedding_directory=embedding_directory,
            embedding_size=CONTEXT_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class DemoSD1Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=DemoTokenizer)


class SmallVocabulary(CLIPTextModel):
    def __init__(self, config, dtype, device, operations):
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        )


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    tokenizer: type[DemoTokenizer] = DemoTokenizer

    def __init__(self, device="cpu", dtype=None, model_options=None):
        tokens = self.tokenizer()
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=MAX_TOKENS,
            model_class=SmallVocabulary,
            return_projected_pooled=False,
            special_tokens={"start": tokens.start_token, "end": tokens.end_token, "pad": tokens.pad_token},
            textmodel_json_config={
                "num_hidden_layers": 2,
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


class DemoClip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=DemoTextEncoder)


def unet_module(
    dtype: torch.dtype,
    device: torch.device | str,
    operations=None,
    computed_in: torch.dtype | None = None,
    unet_config: Mapping[str, Any] = UNET_CONFIG,
) -> comfy.model_base.BaseModel:
    """ComfyUI's BaseModel around its UNet, with weights still to be loaded. ``computed_in``: where not ``dtype``."""
    config = DemoConfig({**unet_config, "dtype": dtype})
    config.manual_cast_dtype = computed_in
    config.custom_operations = operations
    return comfy.model_base.BaseModel(config, device=device)


def load_model(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """``disable_dynamic``: asked for by ComfyUI where it wants weights of a clone's own; these are never dynamic."""
    patcher = load_unet(read(UNET_FILE))
    patcher.cached_patcher_init = (load_model, ())
    return patcher


def load_unet(
    weights: dict[str, torch.Tensor], unet_config: Mapping[str, Any] = UNET_CONFIG
) -> comfy.model_patcher.ModelPatcher:
    dtype, device, computed_in = number_formats(weights)
    return patcher_of(unet_module(dtype, device, computed_in=computed_in, unet_config=unet_config), weights)


def number_formats(weights: dict[str, torch.Tensor]) -> tuple[torch.dtype, torch.device, torch.dtype | None]:
    """Of a diffusion model, where it waits, and what it computes in where that differs: as ComfyUI chooses them."""
    management = comfy.model_management
    dtype = management.unet_dtype(model_params=comfy.utils.calculate_parameters(weights))
    computed_in = management.unet_manual_cast(dtype, management.get_torch_device())
    return dtype, management.unet_offload_device(), computed_in


def patcher_of(model: comfy.model_base.BaseModel, weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """``model`` with ``weights``, as ComfyUI's nodes take it."""
    model.diffusion_model.load_state_dict(weights)
    management = comfy.model_management
    devices = {"load_device": management.get_torch_device(), "offload_device": management.unet_offload_device()}
    return comfy.model_patcher.ModelPatcher(model, **devices)


def load_video_model() -> comfy.model_patcher.ModelPatcher:
    require(VIDEO_FILE)
    weights = load(VIDEO_FILE)
    return inflated(load_model(), weights.form, weights, layers="*", strength=1.0, asked_by="CoherenceDemoModel")


def by_layer(layers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of temporal layers under their layers' names; in training, underscores stand for dots."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in layers.items():
        module, _, rest = name.partition(".")
        named[f"{module.replace('_', '.')}.{rest}"] = tensor
    return named


def load_clip(file: Path | None = None) -> comfy.sd.CLIP:
    """``file``: the video model has a text encoder of its own, VIDEO_TEXT_ENCODER_FILE."""
    return clip_of(read(file or TEXT_ENCODER_FILE), DemoSD1Tokenizer, DemoClip)


def clip_of(weights: dict[str, torch.Tensor], tokenizer: type, model: type) -> comfy.sd.CLIP:
    """``weights``: the text encoder's; ``tokenizer``, ``model``: classes that ComfyUI instantiates."""
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(tokenizer, model),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict={f"clip_l.{name}": tensor for name, tensor in weights.items()},
    )


def load_vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=read(VAE_FILE))


def require(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"The demo model's file {file.name} is missing from the pack's demo folder. It comes with the git "
            "repository, not with the registry's package: clone that."
        )


def read(file: Path) -> dict[str, torch.Tensor]:
    require(file)
    return comfy.utils.load_torch_file(str(file), safe_load=True)
