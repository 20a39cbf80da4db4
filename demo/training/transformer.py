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
from ..world.motion import moving_caption, paint_clips, random_moving_scene
from ..world.painting import paint
from ..world.scenes import random_scene
from ..world.transformer import FRAMES, TransformerConfig, places, stack, transformer_module
from .diffusion import Schedule, attention
from .first.text import encode
from .flow import AVERAGE, train_flow
from .pictures import Batch, Drawn, outlines
from .teacher import Teacher
from .text import trained_encoder

SCHEDULE = Schedule(peak=5e-3, warm_up=20, plan=(82_000, 209_408))  # clips and pictures
BATCH = 8
PICTURES, MORE = 0.35, 4  # the share of steps on single frames, and how many times as many of these: as many tokens
ENDS = r"^(patch_embedding|text_embedding|time_\w+|head)\.|modulation"  # no matrices of equal steps
THETA = 10_000  # of Wan's rotary embedding
FAST, BIAS, GAIN, CONTENT = 2, 2.5, 1.2, 0.3  # of heads that look aside: its waves that they use, and how strongly


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
    how["teacher"] = Teacher(transformer, encoder, AVERAGE)
    train_flow("world_transformer", transformer, velocity, clips, arguments, **how)


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
    """All heads but the last attend to the patch beside, each in another direction, in the same frame.

    Query and key get a constant part in the fastest waves of the rotary embedding; the key's is turned by the way to
    look. So a layer begins like a convolution, which took heads thousands of steps to become.
    """
    width, turned = attention.head_dim, attention.num_heads - 1
    sides = (width - 4 * (width // 6), 2 * (width // 6), 2 * (width // 6))  # channels for time, height and width
    for head in range(turned):
        angle, start = 2 * math.pi * (head / turned + number / (2 * turned)), head * width
        for part in (attention.q, attention.k):
            part.weight.data[start : start + width] *= CONTENT
        for channels, way in zip(sides, (0.0, math.sin(angle), math.cos(angle)), strict=True):
            for wave in range(FAST):
                pair, turn = slice(start + 2 * wave, start + 2 * wave + 2), way * THETA ** (-2 * wave / channels)
                attention.q.bias.data[pair] = torch.tensor([BIAS, 0.0])
                attention.k.bias.data[pair] = BIAS * torch.tensor([math.cos(turn), math.sin(turn)])
                for norm in (attention.norm_q, attention.norm_k):
                    norm.weight.data[pair] = GAIN
            start += channels
