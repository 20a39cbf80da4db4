"""The world's video transformer: flow matching on clips."""

from __future__ import annotations

import argparse
import math
import random
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ..world.captions import caption
from ..world.latents import encode as latents_of
from ..world.motion import MovingScene, moving_caption, paint_clips, random_moving_scene
from ..world.painting import paint
from ..world.scenes import random_scene
from ..world.transformer import FRAMES, TransformerConfig, places, stack, transformer_module
from .diffusion import Schedule, attention
from .first.text import encode
from .flow import AVERAGE, train_flow
from .looking import Axis, Projection, look_aside
from .pictures import Batch, Drawn, outlines
from .teacher import Teacher
from .text import trained_encoder

PART = "world_transformer"
TAUGHT = ("blocks.1", "blocks.3")
SCHEDULE = Schedule(peak=5e-3, warm_up=20, plan=(212_000, 345_192))  # clips and pictures
BATCH = 8
PICTURES, MORE = 0.25, 4  # the share of steps on single frames, and how many times as many of these: as many tokens
ENDS = r"^(patch_embedding|text_embedding|time_\w+|head)\.|modulation"  # no matrices of equal steps


class Clips(Drawn):
    """Clips of as many frames, or single pictures, from which things are learned at a fourth of the cost."""

    def draw(self, rng: random.Random) -> Batch:
        if rng.random() < PICTURES:
            return self._pictures(rng)
        frames = rng.choice(FRAMES)
        clips = [_moving_scene(rng) for _ in range(self.count)]
        tokens = self.tokens(moving_caption, clips, rng)
        pictures = paint_clips(clips, frames, rng).flatten(0, 1)
        latents, edges = (each.unflatten(0, (-1, frames)) for each in (latents_of(pictures), outlines(pictures)))
        return Batch(stack(latents), stack(edges.expand_as(latents)), tokens)

    def _pictures(self, rng: random.Random) -> Batch:
        scenes = [random_scene(rng) for _ in range(MORE * self.count)]
        tokens, pictures = self.tokens(caption, scenes, rng), paint(scenes, rng)
        latents, edges = (each[:, None] for each in (latents_of(pictures), outlines(pictures)))
        return Batch(stack(latents), stack(edges.expand_as(latents)), tokens)


def _moving_scene(rng: random.Random) -> MovingScene:
    """Spinning, which is the hardest motion, comes about twice as often as it would."""
    one, other = random_moving_scene(rng), random_moving_scene(rng)
    return other if other.motion == "spinning" else one


def train_transformer(arguments: argparse.Namespace) -> None:
    """On clips, with captions encoded by a frozen text encoder."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    transformer = transformer_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    initialise(transformer)
    encoder = trained_encoder(arguments.device)

    def velocity(noised: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return transformer(
            torch.cat([noised, places(noised)], 1),
            sigma * 1000,
            context=encode(encoder, batch.tokens),
            transformer_options={"optimized_attention_override": attention},
        )

    clips = Clips(arguments.batch or BATCH, arguments.seed)
    how = {"schedule": SCHEDULE, "ends": ENDS, "shift": TransformerConfig.sampling_settings["shift"]}
    how["teacher"] = Teacher(PART, transformer, TAUGHT, transformer.dim, encoder, AVERAGE)
    train_flow(PART, transformer, velocity, clips, arguments, **how)


def initialise(transformer: Any) -> None:
    """Every branch adds nothing at first; gates are open; most heads look to one side, as convolutions do."""
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
    for number, block in enumerate(transformer.blocks):
        _look_aside(block.self_attn, number)


def _look_aside(attention: Any, number: int) -> None:
    """In the same frame. What is used of the norms is stronger: they are of all heads together."""
    heads, width = attention.num_heads, attention.head_dim
    side = 2 * (width // 6)  # channels for height, and for width
    time = width - 2 * side
    axes = (Axis(0, time, lambda _: 0.0), Axis(time, side, math.sin), Axis(time + side, side, math.cos))
    by_head = [
        Projection(*(each.data.unflatten(0, (heads, width)) for each in (part.weight, part.bias, norm.weight)))
        for part, norm in ((attention.q, attention.norm_q), (attention.k, attention.norm_k))
    ]
    look_aside(by_head[0], by_head[1], axes, number, gain=1.2)
