"""The world's video transformer: flow matching on clips."""

from __future__ import annotations

import argparse
import random

import comfy.ops
import torch
from torch import Tensor, nn

from ..world.captions import caption
from ..world.latents import encode as latents_of
from ..world.motion import moving_caption, paint_clips, random_moving_scene
from ..world.painting import paint
from ..world.scenes import random_scene
from ..world.transformer import FRAMES, TransformerConfig, stack, transformer_module
from .diffusion import Schedule, attention
from .first.text import encode
from .flow import train_flow
from .pictures import Batch, Drawn, outlines
from .text import trained_encoder

SCHEDULE = Schedule(peak=2e-3, warm_up=20, plan=(400_000, 600_000))  # clips and pictures
BATCH = 8
PICTURES, MORE = 0.75, 4  # the share of steps on single frames, and how many times as many of these: as many tokens
ENDS = r"^(patch_embedding|text_embedding|time_\w+|head)\.|modulation"  # no matrices of equal steps


class Clips(Drawn):
    """Clips of as many frames, or single pictures, from which things are learned at a fourth of the cost."""

    def draw(self, rng: random.Random) -> Batch:
        if rng.random() < PICTURES:
            return self._pictures(rng)
        frames = rng.choice(FRAMES)
        clips = [random_moving_scene(rng) for _ in range(self.count)]
        tokens = self.tokens(moving_caption, clips, rng)
        pictures = paint_clips(clips, frames, rng).flatten(0, 1)
        latents, edges = (each.unflatten(0, (-1, frames)) for each in (latents_of(pictures), outlines(pictures)))
        return Batch(stack(latents), stack(edges.expand_as(latents)), tokens)

    def _pictures(self, rng: random.Random) -> Batch:
        scenes = [random_scene(rng) for _ in range(MORE * self.count)]
        tokens, pictures = self.tokens(caption, scenes, rng), paint(scenes, rng)
        latents, edges = (each[:, None] for each in (latents_of(pictures), outlines(pictures)))
        return Batch(stack(latents), stack(edges.expand_as(latents)), tokens)


def train_transformer(arguments: argparse.Namespace) -> None:
    """On clips, with captions encoded by a frozen text encoder."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    transformer = transformer_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    _initialise(transformer)
    encoder = trained_encoder(arguments.device)

    def velocity(noised: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return transformer(
            noised,
            sigma * 1000,
            context=encode(encoder, batch.tokens),
            transformer_options={"optimized_attention_override": attention},
        )

    clips = Clips(arguments.batch or BATCH, arguments.seed)
    how = {"schedule": SCHEDULE, "ends": ENDS, "shift": TransformerConfig.sampling_settings["shift"]}
    train_flow("world_transformer", transformer, velocity, clips, arguments, **how)


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
