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
from .state import Training, rank
from .teacher import Teacher

AVERAGE = 0.998
LESSON = 0.5  # weight of the teacher's errors
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
    teacher: Teacher | None = None,
) -> None:
    """The velocity's squared error, at noise levels spread as the sampler's: uniform, then shifted.

    ``transformer`` learns, ``velocity`` calls it; ``ends``: those of :class:`Muon`. The errors that ``teacher`` finds
    are added.
    """
    comfy.model_management.in_training = True  # else rotary embeddings have no backward pass
    device = torch.device(arguments.device)
    transformer.requires_grad_(True)
    training = Training(part, transformer, Muon(transformer.named_parameters(), ends), AVERAGE)
    clock = Clock(training, schedule, arguments, *([teacher.maps] if teacher else []))
    for batch in batches(data, training.step, painters(device)):
        batch, count = batch.to(device), len(batch.latents)
        generator = torch.Generator().manual_seed((arguments.seed + rank()) * 1_000_003 + training.step)
        sigma = shifted(stratified(count, generator), shift).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        level = sigma.reshape(-1, *[1] * (noise.ndim - 1))
        with half_precision(device):
            noised = torch.lerp(batch.latents, noise, level)
            predicted = velocity(noised, sigma, batch)
            lesson = teacher.errors(noised, sigma, batch.tokens) if teacher else None
        squared = (predicted.float() - (noise - batch.latents)).square()
        emphasis = 1 + OUTLINE_WEIGHT * (1 - level) ** 2 * batch.outlines
        each = (squared * emphasis).mean(tuple(range(1, noise.ndim)))
        loss, figures = each.mean(), parted(each.detach(), sigma < 0.5)
        if lesson is not None:
            loss, figures["lesson"] = loss + LESSON * lesson.mean(), lesson.mean().item()
        training.descend(loss, clock.rate, seen=count)
        if teacher:
            teacher.maps.update(clock.rate, seen=count)
        if not clock.tick(**figures):
            break
