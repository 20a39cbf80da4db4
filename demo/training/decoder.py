"""The world's VAE: an encoder set by hand, a decoder trained to paint what it kept."""

from __future__ import annotations

import argparse
import math
import random

import torch
from comfy.taesd.taesd import TAESD
from torch import Tensor
from torch.utils.data import Dataset

from ..model import VAE_FILE
from ..world.latents import encode
from ..world.painting import paint
from ..world.scenes import random_scene
from .diffusion import Clock, Schedule, batches, half_precision, painters
from .optimizer import Muon
from .state import Training

SCHEDULE = Schedule(peak=1e-3, warm_up=10, plan=(40_000, 80_000))  # crops
BATCH, AVERAGE = 16, 0.998
CROP = 8  # latents' cells, of 16: height and width
NOISE = 0.12  # at most, in the latents: it must not paint grain


class Crops(Dataset):
    """Latents (B, 4, CROP, CROP) and pixels (B, 3, 8 CROP, 8 CROP) around things; always the same for a step."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(self._seed * 7_000_003 + step)
        scenes = [random_scene(rng) for _ in range(self._count)]
        pictures = paint(scenes, rng)
        latents, pixels = encode(pictures), pictures.movedim(-1, 1)
        crops = [_corner(rng.choice(scene.things).place, rng) for scene in scenes]
        return (
            torch.stack([z[:, y : y + CROP, x : x + CROP] for z, (x, y) in zip(latents, crops, strict=True)]),
            torch.stack(
                [p[:, 8 * y : 8 * (y + CROP), 8 * x : 8 * (x + CROP)] for p, (x, y) in zip(pixels, crops, strict=True)]
            ),
        )


def _corner(place: tuple[float, float], rng: random.Random) -> tuple[int, int]:
    """Of a crop around a thing at ``place``, in cells."""
    x, y = (min(max(int(c / 8) - CROP // 2 + rng.randint(-2, 2), 0), 16 - CROP) for c in place)
    return x, y


def train_decoder(arguments: argparse.Namespace) -> None:
    """From the first demo model's decoder, on crops, with squared and absolute error."""
    from safetensors.torch import load_file

    torch.manual_seed(arguments.seed)
    device, count = torch.device(arguments.device), arguments.batch or BATCH
    vae = TAESD().to(device)
    vae.load_state_dict(load_file(VAE_FILE))
    decoder = vae.taesd_decoder
    training = Training("world_decoder", decoder, Muon(decoder.named_parameters(), ends=r"^1\."), AVERAGE)
    clock = Clock(training, SCHEDULE, arguments)
    for latents, pixels in batches(Crops(count, arguments.seed), training.step, painters(device)):
        generator = torch.Generator().manual_seed(arguments.seed * 7_000_003 + training.step)
        level = torch.rand(count, 1, 1, 1, generator=generator) * NOISE
        noisy = latents + level * torch.randn(latents.shape, generator=generator)
        with half_precision(device):
            painted = decoder(noisy.to(device))
        error = painted.float() - pixels.to(device)
        squared = error.square().mean()
        training.descend(squared + 0.1 * error.abs().mean(), clock.rate, seen=count)
        if not clock.tick(psnr=-10 * math.log10(squared.item())):
            break
