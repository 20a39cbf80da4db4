"""Tiny models as quantised files: linear layers as few bits with scales beside them, in the keys that ComfyUI reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import dits
from .weights import Weights

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FP8 = "float8_e4m3fn"


def quantised(weights: Weights, layers: str, algorithm: str) -> Weights:
    """``weights`` with the matrices that the regular expression ``layers`` names in ``algorithm``, one of ComfyUI's
    ``QUANT_ALGOS``; a ``comfy_quant`` key beside each says so."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout = QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
    scale = {} if algorithm == "mxfp8" else {"scale": "recalculate"}
    told = torch.tensor(list(json.dumps({"format": algorithm}).encode()), dtype=torch.uint8)
    file = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2 and re.fullmatch(layers, name):
            file |= QuantizedTensor.from_float(weight.float(), layout, **scale).state_dict(name)
            file[name.removesuffix("weight") + "comfy_quant"] = told
    return file


def scaled_fp8(weights: Weights, layers: str) -> Weights:
    """As older files have them: ``scale_weight`` beside each matrix, and ``scaled_fp8`` once."""
    file = {
        name.replace(".weight_scale", ".scale_weight"): weight
        for name, weight in quantised(weights, layers, FP8).items()
        if not name.endswith(".comfy_quant")
    }
    return file | {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}


def _write_wan21(path: Path, change: Callable[[Weights, str], Weights]) -> None:
    from safetensors.torch import load_file, save_file

    dits.write_wan21(path)
    weights = change(load_file(path), r"blocks\..*\.weight")
    save_file({name: weight.clone() for name, weight in weights.items()}, path)  # none may share memory


FILES: dict[str, Callable[[Path], None]] = {
    "scaled fp8": partial(_write_wan21, change=scaled_fp8),
    "nvfp4": partial(_write_wan21, change=partial(quantised, algorithm="nvfp4")),
}
"""How Wan 2.1's blocks are quantised → what writes the file."""


def quantised_demo() -> ModelPatcher:
    """The demo model with its transformers' matrices in fp8; it does not say how to load it again.

    ComfyUI's loaders know UNets of full width only, so this makes the module as they do. In inference mode, as nodes
    are: outside of it ComfyUI cannot wrap the weights again that a node's run then meets.
    """
    import comfy.ops
    from coherence.demo.model import load_model, patcher_of, unet_module

    weights = quantised(load_model().model.diffusion_model.state_dict(), r".*transformer_blocks.*\.weight", FP8)
    operations = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.float32, disabled={FP8})
    with torch.inference_mode():
        return patcher_of(unet_module(torch.float32, "cpu", operations), weights)
