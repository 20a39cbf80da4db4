"""The world's picture transformer: flow matching on the picture model's pictures."""

from __future__ import annotations

import argparse

import comfy.ops
import torch
from torch import Tensor, nn

from ..world.picture_transformer import PictureTransformerConfig, picture_transformer_module
from .diffusion import Schedule, attention
from .first.text import encode, prepare_norms
from .flow import train_flow
from .pictures import Batch, Pictures
from .text import trained_encoder

SCHEDULE = Schedule(peak=2e-3, warm_up=20, plan=(3_000_000, 4_000_000))  # pictures
BATCH = 32
ENDS = r"^(img_in|txt_in|time_in|vector_in|final_layer)\.|(mod|modulation)\.lin\."  # no matrices of equal steps


def train_flux(arguments: argparse.Namespace) -> None:
    """On the picture model's pictures, with captions encoded by a frozen text encoder."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    transformer = picture_transformer_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    _initialise(transformer)
    encoder = trained_encoder(arguments.device)

    def velocity(noised: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        context = encode(encoder, batch.tokens)
        ends = (batch.tokens == encoder.special_tokens["end"]).int().argmax(1)
        return transformer(
            noised,
            sigma,
            context=context,
            y=context[torch.arange(len(ends), device=device), ends],
            transformer_options={"optimized_attention_override": _attention},
        )

    pictures = Pictures(arguments.batch or BATCH, arguments.seed)
    how = {"schedule": SCHEDULE, "ends": ENDS, "shift": PictureTransformerConfig.sampling_settings["shift"]}
    train_flow("world_flux", transformer, velocity, pictures, arguments, **how)


def _attention(inner, q, k, v, heads, *arguments, skip_reshape=False, **options):
    """Flux hands over heads that are split."""
    if skip_reshape:
        q, k, v = (tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
    return attention(inner, q, k, v, heads)


def _initialise(transformer: nn.Module) -> None:
    """Every branch adds nothing at first, for its gate is closed."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            closed = name.endswith(("mod.lin", "modulation.lin", "final_layer.linear", "adaLN_modulation.1"))
            nn.init.normal_(module.weight, std=0.0 if closed else module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            nn.init.ones_(weight)
    prepare_norms(transformer)
