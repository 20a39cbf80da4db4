"""The world's picture transformer: flow matching on the picture model's pictures."""

from __future__ import annotations

import argparse

import comfy.model_management
import comfy.ops
import torch
from torch import nn

from ..world.picture_transformer import PictureTransformerConfig, picture_transformer_module
from .diffusion import Clock, Schedule, attention, batches, half_precision, painters, shifted, stratified
from .first.text import encode, prepare_norms
from .optimizer import Muon
from .pictures import OUTLINE_WEIGHT, Pictures
from .state import Training
from .text import trained_encoder

SCHEDULE = Schedule(peak=2e-3, warm_up=20, plan=(3_000_000, 4_000_000))  # pictures
BATCH, AVERAGE = 32, 0.999
ENDS = r"^(img_in|txt_in|time_in|vector_in|final_layer)\.|(mod|modulation)\.lin\."  # no matrices of equal steps


def train_flux(arguments: argparse.Namespace) -> None:
    """The velocity's squared error, at noise levels spread as the sampler's: uniform, then shifted."""
    comfy.model_management.in_training = True  # else rotary embeddings have no backward pass
    torch.manual_seed(arguments.seed)
    device, count = torch.device(arguments.device), arguments.batch or BATCH
    transformer = picture_transformer_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    _initialise(transformer)
    transformer.requires_grad_(True)
    training = Training("world_flux", transformer, Muon(transformer.named_parameters(), ENDS), AVERAGE)
    encoder, shift = trained_encoder(arguments.device), PictureTransformerConfig.sampling_settings["shift"]
    end_token, clock = encoder.special_tokens["end"], Clock(training, SCHEDULE, arguments)
    for batch in batches(Pictures(count, arguments.seed), training.step, painters(device)):
        batch, generator = batch.to(device), torch.Generator().manual_seed(arguments.seed * 1_000_003 + training.step)
        sigma = shifted(stratified(count, generator), shift).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        level, context = sigma.reshape(-1, 1, 1, 1), encode(encoder, batch.tokens)
        ends = (batch.tokens == end_token).int().argmax(1)
        with half_precision(device):
            predicted = transformer(
                torch.lerp(batch.latents, noise, level),
                sigma,
                context=context,
                y=context[torch.arange(count, device=device), ends],
                transformer_options={"optimized_attention_override": _attention},
            )
        squared = (predicted.float() - (noise - batch.latents)).square().mean(1, keepdim=True)
        each = (squared * (1 + OUTLINE_WEIGHT * (1 - level) ** 2 * batch.outlines)).mean((1, 2, 3))
        loss, fine = each.mean(), sigma < 0.5
        training.descend(loss, clock.rate, seen=count)
        if not clock.tick(loss=loss.item(), fine=each[fine].mean().item(), coarse=each[~fine].mean().item()):
            break


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
