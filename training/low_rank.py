"""GE-Adapter's FTC blocks (§3.2, Eq. 2): LoRA F = W0·x + B·A·x on the attention projections of a UNet.

W0 is (out, in); A, "down", is (rank, in); B, "up", is (out, rank) and starts at 0, so that an untrained adapter is
the base model. Names are those of kohya's scripts, which ComfyUI's stock LoraLoader and others read:
``lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight``; ``alpha`` = rank, so that
nothing is scaled.

§3.2 speaks of the UNet's decoder layers, §4.1 of its downsampling blocks; either can be chosen. Sizes at rank 4 on
Stable Diffusion 1.5: 287,744 parameters in the down blocks, 797,184 in all blocks. The paper says 0.755 M, which is
neither: rank 8 on the down blocks' attention and second feed-forward layers would be 754,688.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..attention.sites import list_sites

Layers = Literal["down", "all", "up"]
LAYERS: tuple[Layers, ...] = get_args(Layers)
_PARTS: dict[Layers, str] = {"down": "input.", "all": "", "up": "output."}
"""How the sites of each begin."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Projection:
    """One linear layer W0: ``name`` in LoRA files, ``key`` of its weight in ComfyUI's model, its in- and outputs."""

    name: str
    key: str
    inputs: int
    outputs: int


def attention_projections(base_model: Any, layers: Layers) -> list[Projection]:
    """W_q, W_k, W_v and W_out of the self- and cross-attention of ``base_model``, a ``comfy.model_base.BaseModel``.

    ``layers``: of the down blocks, of the up blocks (the decoder), or of all; in the order they run. ValueError for
    models but UNets of pictures.
    """
    unet = require_image_unet(base_model)
    paths = {module: path for path, module in unet.named_modules()}
    names = _names(base_model)
    found = []
    for site in list_sites(unet):
        if site.attends_by or not site.name.startswith(_PARTS[layers]):
            continue  # a motion model's layers are not the base model's
        for projection in PROJECTIONS:
            linear: Any = site.module.get_submodule(projection)
            key = f"diffusion_model.{paths[site.module]}.{projection}.weight"
            found.append(Projection(names[key], key, linear.in_features, linear.out_features))
    return found


def require_image_unet(base_model: Any) -> UNetModel:
    """The network of ``base_model``; ValueError for models but UNets of pictures."""
    unet = getattr(base_model.diffusion_model, "_orig_mod", base_model.diffusion_model)
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"GE-Adapter adapts the down blocks of a UNet (SD1.5, SD2, SDXL), got {type(unet).__name__}. "
            "Use a model with a UNet."
        )
    if any(site.kind == "temporal" for site in list_sites(unet, motion_models=())):
        raise ValueError(
            f"GE-Adapter adapts an image UNet (SD1.5, SD2, SDXL), got {type(base_model.model_config).__name__}, which "
            "already attends across frames. Use an image model."
        )
    return unet


def _names(base_model: Any) -> dict[str, str]:
    """By key of a weight the name of its LoRA: diffusers' path where it has one, else ComfyUI's."""
    keys = [key for key in base_model.state_dict() if key.endswith(".weight")]
    names = {key: key.removeprefix("diffusion_model.") for key in keys}
    for theirs, ours in comfy.utils.unet_to_diffusers(base_model.model_config.unet_config).items():
        if (key := f"diffusion_model.{ours}") in names:
            names[key] = theirs
    return {key: "lora_unet_" + name.removesuffix(".weight").replace(".", "_") for key, name in names.items()}


def initial_lora(projections: Iterable[Projection], rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors of an untrained LoRA by their names in files: A uniform in ±1/√in, as torch's Linear, B = 0."""
    lora = {}
    for projection in projections:
        down = torch.rand(rank, projection.inputs, generator=generator)
        lora[f"{projection.name}.lora_down.weight"] = (down * 2 - 1) * projection.inputs**-0.5
        lora[f"{projection.name}.lora_up.weight"] = torch.zeros(projection.outputs, rank)
        lora[f"{projection.name}.alpha"] = torch.tensor(float(rank))
    return lora


def pairs_of(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """A, B and alpha by name of the projection; ValueError if tensors do not form such triples."""
    names = {name.partition(".")[0] for name in lora}
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    expected = {f"{name}.{part}" for name in names for part in parts}
    if odd := sorted(expected ^ set(lora)):
        raise ValueError(f"expected {', '.join(parts)} of every projection, missing or unknown: {', '.join(odd[:4])}")
    pairs = {}
    for name in sorted(names):
        down, up, alpha = (lora[f"{name}.{part}"] for part in parts)
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or alpha.numel() != 1:
            raise ValueError(
                f"{name}: expected A (rank, in), B (out, rank) and one alpha, "
                f"got {tuple(down.shape)}, {tuple(up.shape)} and {tuple(alpha.shape)}"
            )
        pairs[name] = (down, up, alpha)
    return pairs
