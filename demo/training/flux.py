"""The world's picture transformer: flow matching on the picture model's pictures."""

from __future__ import annotations

import argparse
import math
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ..world.picture_transformer import FLUX_CONFIG, PictureTransformerConfig, picture_transformer_module
from ..world.transformer import places
from .diffusion import Schedule, attention
from .first.text import encode, prepare_norms
from .flow import AVERAGE, train_flow
from .looking import Axis, Projection, look_aside
from .pictures import Batch, Pictures
from .teacher import Teacher
from .text import trained_encoder

PART = "world_flux"
TAUGHT = ("single_blocks.0", "single_blocks.2")
SCHEDULE = Schedule(peak=5e-3, warm_up=20, plan=(47_000, 209_056))  # pictures
BATCH = 32
ENDS = r"^(img_in|txt_in|time_in|vector_in|final_layer)\.|(mod|modulation)\.lin\."  # no matrices of equal steps


def train_flux(arguments: argparse.Namespace) -> None:
    """On the picture model's pictures, with captions encoded by a frozen text encoder."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    transformer = picture_transformer_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    initialise(transformer)
    encoder = trained_encoder(arguments.device)

    def velocity(noised: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        context = encode(encoder, batch.tokens)
        ends = (batch.tokens == encoder.special_tokens["end"]).int().argmax(1)
        return transformer(
            torch.cat([noised, places(noised)], 1),
            sigma,
            context=context,
            y=context[torch.arange(len(ends), device=device), ends],
            transformer_options={"optimized_attention_override": _attention},
        )

    pictures = Pictures(arguments.batch or BATCH, arguments.seed)
    how = {"schedule": SCHEDULE, "ends": ENDS, "shift": PictureTransformerConfig.sampling_settings["shift"]}
    how["teacher"] = Teacher(PART, transformer, TAUGHT, transformer.hidden_size, encoder, AVERAGE)
    train_flow(PART, transformer, velocity, pictures, arguments, **how)


def _attention(inner, q, k, v, heads, *arguments, skip_reshape=False, **options):
    """Flux hands over heads that are split."""
    if skip_reshape:
        q, k, v = (tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
    return attention(inner, q, k, v, heads)


def initialise(transformer: Any) -> None:
    """Every branch adds nothing at first; gates are open; most heads look to one side, as convolutions do."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            silent = name.endswith((".proj", "mlp.2", ".linear2", ".lin", "final_layer.linear", "adaLN_modulation.1"))
            nn.init.normal_(module.weight, std=0.0 if silent else module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(".lin"):  # of shift, scale and gate, once or twice
                module.bias.data.unflatten(0, (-1, 3, transformer.hidden_size))[:, 2] = 1.0
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            nn.init.ones_(weight)
    prepare_norms(transformer)
    layers = [block.img_attn.qkv for block in transformer.double_blocks]
    for number, layer in enumerate([*layers, *(block.linear1 for block in transformer.single_blocks)]):
        _look_aside(layer, transformer.num_heads, number)


def _look_aside(layer: nn.Linear, heads: int, number: int) -> None:
    index, height, width = FLUX_CONFIG["axes_dim"]
    rows = 3 * heads * (index + height + width)  # a single block's layer has more than queries, keys and values
    weight, bias = (each.data[:rows].unflatten(0, (3, heads, -1)) for each in (layer.weight, layer.bias))
    axes = (Axis(index, height, math.sin), Axis(index + height, width, math.cos))
    look_aside(Projection(weight[0], bias[0]), Projection(weight[1], bias[1]), axes, number)
