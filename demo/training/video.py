"""The world's video model: temporal layers for the frozen picture model, and a text encoder that learns along.

As the first demo model's in :mod:`.first.video`: the picture model's own keys and values of the text are frozen and
know nothing of motions.
"""

from __future__ import annotations

import argparse
import random

import comfy.ops
import torch

from ..world.latents import encode as latents_of
from ..world.model import WorldTextEncoder, unet_module
from ..world.motion import moving_caption, paint_clips, random_moving_scene
from .diffusion import Clock, Schedule, attention, batches, half_precision, painters
from .first.text import encode, prepare_norms
from .first.unet import alphas_cumprod
from .first.video import TemporalLayers
from .image import losses, sample_timesteps
from .optimizer import Muon
from .pictures import Batch, Drawn, outlines
from .state import Training, trained_weights

SCHEDULE = Schedule(peak=2e-3, warm_up=20, plan=(8_000, 14_000))  # clips
BATCH, AVERAGE = 4, 0.998
FRAMES = 16
STRIDES = (1, 2, 4)  # of the frames that a step shows


class Clips(Drawn):
    """Every step's frames, clip after clip, and which they are."""

    def draw(self, rng: random.Random) -> tuple[Batch, list[int]]:
        stride = rng.choice(STRIDES)
        frames = list(range(rng.randrange(stride), FRAMES, stride))
        clips = [random_moving_scene(rng) for _ in range(self.count)]
        tokens = self.tokens(moving_caption, clips, rng)
        pictures = paint_clips(clips, FRAMES, rng)[:, frames].flatten(0, 1)
        return Batch(latents_of(pictures), outlines(pictures), tokens), frames


def train_video(arguments: argparse.Namespace) -> None:
    """Every clip has one noise level, and independent noise in its frames."""
    torch.manual_seed(arguments.seed)
    device, count = torch.device(arguments.device), arguments.batch or BATCH
    unet = unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    unet.load_state_dict(trained_weights("world_image"))
    unet.requires_grad_(False)
    layers = TemporalLayers(unet).to(device)
    training = Training("world_video", layers, Muon(layers.named_parameters(), ends=r"^$"), AVERAGE)
    encoder = WorldTextEncoder(device=arguments.device, dtype=torch.float32)
    encoder.load_state_dict(trained_weights("world_text"))
    prepare_norms(encoder)
    encoder.requires_grad_(True)
    words = Training("world_video_text", encoder, Muon(encoder.named_parameters(), ends=r"embedding"), AVERAGE)
    signals, clock = alphas_cumprod().to(device), Clock(training, SCHEDULE, arguments, words)
    for batch, frames in batches(Clips(count, arguments.seed), training.step, painters(device)):
        batch, generator = batch.to(device), torch.Generator().manual_seed(arguments.seed * 1_000_003 + training.step)
        timesteps = sample_timesteps(count, generator).to(device).repeat_interleave(len(frames))
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        signal = signals[timesteps].reshape(-1, 1, 1, 1)
        hooks = layers.on(frames)
        with half_precision(device):
            predicted = unet(
                signal.sqrt() * batch.latents + (1 - signal).sqrt() * noise,
                timesteps=timesteps.float(),
                context=encode(encoder, batch.tokens).repeat_interleave(len(frames), 0),
                transformer_options={"optimized_attention_override": attention},
            )
        loss = losses(predicted.float(), noise, signal, batch.outlines).mean()
        loss.backward()
        training.update(clock.rate, seen=count)
        words.update(clock.rate / 3, seen=count)
        for hook in hooks:
            hook.remove()
        if not clock.tick(loss=loss.item()):
            break
