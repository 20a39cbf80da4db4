"""The world's picture model: SD1.5's ε-prediction and noise schedule."""

from __future__ import annotations

import argparse
from itertools import pairwise

import comfy.ops
import torch
from torch import Tensor

from ..world.model import unet_module
from .diffusion import Clock, Schedule, attention, batches, half_precision, painters, parted, stratified
from .first.text import encode
from .first.unet import alphas_cumprod, initialise
from .optimizer import Muon
from .pictures import OUTLINE_WEIGHT, Pictures
from .state import Training
from .text import trained_encoder

SCHEDULE = Schedule(peak=2e-3, warm_up=20, plan=(128_352, 195_000))  # pictures
BATCH, AVERAGE = 32, 0.999
LEVELS = ((0.0, 0), (0.04, 60), (0.5, 500), (1.0, 1000))  # shares of the pictures below a timestep: σ 0.14, 1.6, 14.6
ENDS = r"^(input_blocks\.0|out|time_embed)\."  # no matrices of equal steps


def sample_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Almost half of them where things are known but their outlines are not: σ from 0.14 to 1.6."""
    u, timesteps = stratified(count, generator), torch.zeros(count)
    for (low, first), (high, last) in pairwise(LEVELS):
        timesteps = torch.where((u >= low) & (u < high), first + (u - low) / (high - low) * (last - first), timesteps)
    return timesteps.long().clamp(0, 999)


def train_image(arguments: argparse.Namespace) -> None:
    """With the loss of v up to σ = 7, and captions encoded by a frozen text encoder."""
    torch.manual_seed(arguments.seed)
    device, count = torch.device(arguments.device), arguments.batch or BATCH
    unet = unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    initialise(unet)
    unet.requires_grad_(True)
    unet.train()
    optimizer = Muon(unet.named_parameters(), ENDS)
    training = Training("world_image", unet, optimizer, decay=AVERAGE)
    encoder, signals = trained_encoder(arguments.device), alphas_cumprod().to(device)
    model = torch.compile(unet) if device.type == "cuda" else unet
    clock = Clock(training, SCHEDULE, arguments)
    for batch in batches(Pictures(count, arguments.seed), training.step, painters(device)):
        batch, generator = batch.to(device), torch.Generator().manual_seed(arguments.seed * 1_000_003 + training.step)
        timesteps = sample_timesteps(count, generator).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        signal = signals[timesteps].reshape(-1, 1, 1, 1)
        with half_precision(device):
            predicted = model(
                signal.sqrt() * batch.latents + (1 - signal).sqrt() * noise,
                timesteps=timesteps.float(),
                context=encode(encoder, batch.tokens),
                transformer_options={"optimized_attention_override": attention},
            )
        each = losses(predicted.float(), noise, signal, batch.outlines)
        training.descend(each.mean(), clock.rate, seen=count)
        if not clock.tick(**parted(each.detach(), timesteps < LEVELS[2][1])):
            break


def losses(predicted: Tensor, noise: Tensor, signal: Tensor, outlined: Tensor) -> Tensor:
    """(B,): ε's squared error · (1 + σ²), at most 50, with more weight on ``outlined`` cells where noise is low."""
    emphasis = 1 + OUTLINE_WEIGHT * signal * outlined  # 1 / (1 + σ²) is the signal
    squared = (predicted - noise).square().mean(1, keepdim=True)
    return (squared * emphasis).mean((1, 2, 3)) * (1 / signal.flatten()).clamp(max=50.0)
