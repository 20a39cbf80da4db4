"""The world's video transformer: flow matching on clips."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..world.latents import encode as latents_of
from ..world.motion import moving_caption, paint_clips, random_moving_scene
from ..world.transformer import FRAMES, TransformerConfig, stack, transformer_module
from .diffusion import Clock, Schedule, attention, batches, half_precision, painters, shifted, stratified
from .first.text import encode
from .optimizer import Muon
from .pictures import OUTLINE_WEIGHT, PARTIAL, UNSAID, outlines
from .state import Training
from .text import Captions, trained_encoder

SCHEDULE = Schedule(peak=2e-3, warm_up=20, plan=(1_500_000, 2_000_000))  # clips
BATCH, AVERAGE = 8, 0.999
ENDS = r"^(patch_embedding|text_embedding|time_\w+|head)\.|modulation"  # no matrices of equal steps


@dataclass(frozen=True)
class Batch:
    """``latents`` (B, 16, T, 16, 16), ``outlines`` likewise, in {0, 1}, ``tokens`` (B, 32)."""

    latents: Tensor
    outlines: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(each.to(device) for each in (self.latents, self.outlines, self.tokens)))


class Clips(Dataset):
    """The batch of every step, always the same one for the same ``seed``; all its clips have as many frames."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self._tokenize = count, seed, Captions()

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(self._seed * 1_000_003 + step)
        frames = rng.choice(FRAMES)
        clips = [random_moving_scene(rng) for _ in range(self._count)]
        texts = ["" if rng.random() < UNSAID else moving_caption(clip, rng, PARTIAL) for clip in clips]
        pictures = paint_clips(clips, frames, rng).flatten(0, 1)
        latents, edges = (each.unflatten(0, (-1, frames)) for each in (latents_of(pictures), outlines(pictures)))
        return Batch(stack(latents), stack(edges.expand_as(latents)), self._tokenize(texts))


def train_transformer(arguments: argparse.Namespace) -> None:
    """The velocity's squared error, at noise levels spread as the sampler's: uniform, then shifted."""
    comfy.model_management.in_training = True  # else rotary embeddings have no backward pass
    torch.manual_seed(arguments.seed)
    device, count = torch.device(arguments.device), arguments.batch or BATCH
    transformer = transformer_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    _initialise(transformer)
    transformer.requires_grad_(True)
    training = Training("world_transformer", transformer, Muon(transformer.named_parameters(), ENDS), AVERAGE)
    encoder, shift = trained_encoder(arguments.device), TransformerConfig.sampling_settings["shift"]
    clock = Clock(training, SCHEDULE, arguments)
    for batch in batches(Clips(count, arguments.seed), training.step, painters(device)):
        batch, generator = batch.to(device), torch.Generator().manual_seed(arguments.seed * 1_000_003 + training.step)
        sigma = shifted(stratified(count, generator), shift).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        level = sigma.reshape(-1, 1, 1, 1, 1)
        with half_precision(device):
            predicted = transformer(
                torch.lerp(batch.latents, noise, level),
                sigma * 1000,
                context=encode(encoder, batch.tokens),
                transformer_options={"optimized_attention_override": attention},
            )
        squared = (predicted.float() - (noise - batch.latents)).square()
        each = (squared * (1 + OUTLINE_WEIGHT * (1 - level) ** 2 * batch.outlines)).mean((1, 2, 3, 4))
        loss, fine = each.mean(), sigma < 0.5
        training.descend(loss, clock.rate, seen=count)
        if not clock.tick(loss=loss.item(), fine=each[fine].mean().item(), coarse=each[~fine].mean().item()):
            break


def _initialise(transformer: nn.Module) -> None:
    """Every branch adds nothing at first; gates are open."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.normal_(
                module.weight, std=0.02 if name.startswith("time_") else 1 / module.weight[0].numel() ** 0.5
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            nn.init.ones_(weight)
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                nn.init.zeros_(bias)
        if name.endswith(("attn.o", "ffn.2")) or name == "head.head":
            nn.init.zeros_(module.weight)
        if isinstance(modulation := getattr(module, "modulation", None), nn.Parameter):
            nn.init.zeros_(modulation)
            if modulation.shape[1] == 6:
                modulation.data[:, [2, 5]] = 1.0
