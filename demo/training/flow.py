"""The training of models that match a flow: from noise straight to latents."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .diffusion import Clock, Schedule, batches, half_precision, painters, parted, shifted, stratified
from .optimizer import Muon
from .pictures import OUTLINE_WEIGHT, Batch
from .state import Training

AVERAGE = 0.999
Velocity = Callable[[Tensor, Tensor, Batch], Tensor]
"""Noised latents, their noise levels (B,) from 0 to 1, and the batch they come from → noise less latents."""


def train_flow(
    part: str,
    transformer: nn.Module,
    velocity: Velocity,
    data: Dataset,
    arguments: argparse.Namespace,
    *,
    schedule: Schedule,
    ends: str,
    shift: float,
) -> None:
    """The velocity's squared error, at noise levels spread as the sampler's: uniform, then shifted.

    ``transformer`` learns, ``velocity`` calls it; ``ends``: those of :class:`Muon`.
    """
    comfy.model_management.in_training = True  # else rotary embeddings have no backward pass
    device = torch.device(arguments.device)
    transformer.requires_grad_(True)
    training = Training(part, transformer, Muon(transformer.named_parameters(), ends), AVERAGE)
    clock = Clock(training, schedule, arguments)
    for batch in batches(data, training.step, painters(device)):
        batch, generator = batch.to(device), torch.Generator().manual_seed(arguments.seed * 1_000_003 + training.step)
        count = len(batch.latents)
        sigma = shifted(stratified(count, generator), shift).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        level = sigma.reshape(-1, *[1] * (noise.ndim - 1))
        with half_precision(device):
            predicted = velocity(torch.lerp(batch.latents, noise, level), sigma, batch)
        squared = (predicted.float() - (noise - batch.latents)).square()
        emphasis = 1 + OUTLINE_WEIGHT * (1 - level) ** 2 * batch.outlines
        each = (squared * emphasis).mean(tuple(range(1, noise.ndim)))
        training.descend(each.mean(), clock.rate, seen=count)
        if not clock.tick(**parted(each.detach(), sigma < 0.5)):
            break
