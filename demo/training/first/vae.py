"""The demo model's VAE: an encoder set by hand, a decoder trained to paint what it kept."""

from __future__ import annotations

import argparse
import math
import random

import torch
from comfy.taesd.taesd import TAESD
from torch import Tensor

from ...shapes import COLUMNS, RADII, ROWS, coverage, paint, random_scene
from .checkpoints import Trained, ship, write_curve
from .data import COLOUR_GAIN, EDGE_GAIN, LUMA, encode

CROPS = 24  # per step, 64×64 pixels


def train_vae(arguments: argparse.Namespace) -> None:
    """The decoder, on crops around the shapes, from latents with a little noise: it must not paint grain."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    vae = TAESD().to(device)
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(module)
    with torch.no_grad():
        hand_set_encoder(vae.taesd_encoder)
        vae.vae_scale.fill_(0.18215)  # SD1.5's latent format: the UNet then sees the encoder's output as it is
    decoder = vae.taesd_decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    trained, running = Trained("vae", decoder, optimizer, decay=0.998), None
    while trained.step < arguments.vae_steps:
        rng = random.Random(arguments.seed * 7_000_003 + trained.step)
        generator = torch.Generator().manual_seed(arguments.seed * 7_000_003 + trained.step)
        target, latent = (torch.cat(crops) for crops in zip(*(_crop(rng) for _ in range(CROPS)), strict=True))
        level = torch.rand(CROPS, 1, 1, 1, generator=generator) * 0.12
        noisy = latent + level * torch.randn(latent.shape, generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            painted = decoder(noisy.to(device))
        error = painted.float() - target.to(device)
        loss = error.square().mean() + 0.1 * error.abs().mean()
        progress = trained.step / arguments.vae_steps
        warm_up = min(1.0, (trained.step + 1) / 100)
        trained.descend(loss, 2e-3 * warm_up * (0.5 + 0.5 * math.cos(math.pi * progress)))
        squared = error.square().mean().item()
        running = squared if running is None else 0.98 * running + 0.02 * squared
        if trained.step % 50 == 0:
            trained.note(psnr=-10 * math.log10(running))
        if trained.step % 100 == 0 or trained.step == arguments.vae_steps:
            trained.save()
            decoder_average = {f"taesd_decoder.{name}": tensor for name, tensor in trained.average.items()}
            ship({**vae.state_dict(), **decoder_average}, "vae")
    write_curve("vae", trained.curve)


def hand_set_encoder(encoder: torch.nn.Module) -> None:
    """TAESD's encoder as block statistics: its blocks pass on what is positive, strided convolutions average 2×2."""
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)
    first, *strided, last = (layer for layer in encoder.children() if isinstance(layer, torch.nn.Conv2d))
    for colour in range(3):
        first.weight[colour, colour, 1, 1] = 1.0
        for layer in strided:
            layer.weight[colour, colour, 1:, 1:] = 0.25
        last.weight[colour, colour, 1, 1] = COLOUR_GAIN
        strided[-1].weight[3, colour, 1:, 1] = 0.5 * LUMA[colour]  # luma of the left half,
        strided[-1].weight[4, colour, 1:, 2] = 0.5 * LUMA[colour]  # of the right half
    last.weight[3, 3, 1, 1], last.weight[3, 4, 1, 1] = EDGE_GAIN, -EDGE_GAIN
    assert last.bias is not None
    last.bias[:3] = -0.5 * COLOUR_GAIN


def _crop(rng: random.Random) -> tuple[Tensor, Tensor]:
    """64×64 pixels (1, 3, 64, 64) around a shape, anywhere and slightly turned, and their latents (1, 4, 8, 8)."""
    scene = random_scene(rng)
    x, y = COLUMNS[scene.column] + rng.uniform(-8, 8), ROWS[scene.row] + rng.uniform(-8, 8)
    radius = RADII[scene.size] * rng.uniform(0.85, 1.15)
    angle = rng.uniform(-0.3, 0.3) if rng.random() < 0.5 else 0.0
    picture = paint(
        coverage(scene.shape, radius, torch.tensor([x]), torch.tensor([y]), angle), scene.colour, scene.background
    )
    left, top = (min(max(int(c / 8) - 4 + rng.randint(-2, 2), 0), 8) for c in (x, y))
    pixels = picture[:, top * 8 : top * 8 + 64, left * 8 : left * 8 + 64]
    return pixels.movedim(-1, 1), encode(picture)[:, :, top : top + 8, left : left + 8]
