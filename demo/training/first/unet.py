"""The demo model's UNet."""

from __future__ import annotations

import argparse
import math
import random
import time

import comfy.ops
import torch
from torch import Tensor

from ...model import unet_module
from .checkpoints import Trained, ship, write_curve
from .data import LatentBank
from .text import Captions, encode, trained_encoder


def alphas_cumprod() -> Tensor:
    """SD1.5's schedule: √β linear from √0.00085 to √0.012 in 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def sample_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Stratified; three quarters fall where the noise hides shapes (σ > 1), a quarter where only edges are left."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.where(u < 0.25, u * 4 * 400, 400 + (u - 0.25) / 0.75 * 600).long().clamp(0, 999)


def train_unet(arguments: argparse.Namespace) -> None:
    """ε-prediction with the loss of v up to σ = 7 (ε's error · (1 + σ²)): shapes are decided at high noise.

    The first stage sees captions that say everything; after it, half of them leave attributes out.
    """
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    unet = unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    initialise(unet)
    unet.requires_grad_(True)
    unet.train()
    groups = [
        {"params": [p for p in unet.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in unet.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    trained = Trained("unet", unet, torch.optim.AdamW(groups, betas=(0.9, 0.99)), decay=0.997)
    encoder, tokenize, bank = trained_encoder(arguments.device), Captions(), LatentBank()
    signals = alphas_cumprod().to(device)
    running, began, first_step = None, time.time(), trained.step
    total = arguments.unet_stages[-1]
    while trained.step < total:
        rng = random.Random(arguments.seed * 1_000_003 + trained.step)
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + trained.step)
        whole = trained.step < arguments.unet_stages[0]
        clean, captions = bank.batch(arguments.batch, rng, partial=0.0 if whole else 0.5)
        captions = ["" if rng.random() < 0.1 else text for text in captions]
        timesteps = sample_timesteps(arguments.batch, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        with torch.no_grad():
            context = encode(encoder, tokenize(captions).to(device))
        signal = signals[timesteps].reshape(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(
                signal.sqrt() * clean.to(device) + (1 - signal).sqrt() * noise,
                timesteps=timesteps.float(),
                context=context,
                transformer_options={"optimized_attention_override": explicit_attention},
            )
        squared = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (squared * (1 / signal.flatten()).clamp(max=50.0)).mean()
        trained.descend(loss, _rate(trained.step, arguments))
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if trained.step % 50 == 0:
            speed = (trained.step - first_step) * arguments.batch / (time.time() - began)
            trained.note(pictures=trained.step * arguments.batch, loss=running, pictures_per_second=round(speed))
        if trained.step % arguments.save_every == 0 or trained.step == total:
            trained.save()
            ship(trained.average, "unet")
    write_curve("unet", trained.curve)


def _rate(step: int, arguments: argparse.Namespace) -> float:
    """A cosine for each stage, with a warm-up, the first at the full rate, the others at half of it."""
    stage = next(number for number, end in enumerate(arguments.unet_stages) if step < end)
    start, end = (0, *arguments.unet_stages)[stage : stage + 2]
    peak = arguments.rate if stage == 0 else arguments.rate / 2
    warm_up = min(1.0, (step - start + 1) / (300 if stage == 0 else 50))
    return peak * warm_up * (0.5 + 0.5 * math.cos(math.pi * (step - start) / (end - start)))


def initialise(unet: torch.nn.Module) -> None:
    """Stable Diffusion's: torch's defaults, zeros where a branch joins the trunk."""
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.Linear.reset_parameters(module)  # ComfyUI's own classes leave weights as they are
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(module)
        elif isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def explicit_attention(_, q: Tensor, k: Tensor, v: Tensor, heads: int, *__, **___) -> Tensor:
    """Plain softmax attention: at 256 tokens its backward pass on CPU takes a third of the fused one's time."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=q.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)
