"""The world's VAE encoder is what trainings compute without it, and clips' latents are their frames'."""

import random

import pytest
import torch
from coherence.demo.world.latents import COLOUR_GAIN, encode, set_encoder
from coherence.demo.world.painting import paint
from coherence.demo.world.scenes import random_scene
from coherence.demo.world.transformer import FRAMES, stack, unstack
from comfy.taesd.taesd import TAESD


def test_the_vaes_encoder_computes_what_trainings_do():
    rng = random.Random(0)
    pictures = paint([random_scene(rng) for _ in range(4)], rng)
    vae = TAESD()
    set_encoder(vae.taesd_encoder)
    torch.testing.assert_close(vae.taesd_encoder(pictures.movedim(-1, 1)), encode(pictures), rtol=0, atol=1e-5)


def test_latents_of_a_flat_area_are_its_colour():
    colour = torch.tensor([0.9, 0.4, 0.1])
    latents = encode(colour.expand(1, 32, 32, 3))[0]
    torch.testing.assert_close(latents[:3], ((colour - 0.5) * COLOUR_GAIN)[:, None, None].expand(3, 4, 4))
    assert latents[3].abs().max() < 1e-6


def test_latents_tell_the_quarters_of_a_block():
    """A black quarter on white is never mistaken for another one: what the first demo model's encoder cannot tell."""
    pictures = torch.ones(4, 8, 8, 3)
    for quarter, picture in enumerate(pictures):
        top, left = 4 * (quarter // 2), 4 * (quarter % 2)
        picture[top : top + 4, left : left + 4] = 0
    latents = encode(pictures).flatten(1)
    apart = torch.cdist(latents, latents) + 9 * torch.eye(4)
    assert apart.min() > 0.5


@pytest.mark.parametrize("frames", FRAMES)
def test_stacked_frames_come_apart_again(frames):
    latents = torch.randn(2, frames, 4, 6, 5)
    stacked = stack(latents)
    assert stacked.shape == (2, 16, 1 + (frames - 1) // 4, 6, 5)
    torch.testing.assert_close(unstack(stacked), latents)


def test_frames_that_fill_no_latent_are_refused():
    with pytest.raises(ValueError, match="one more than a multiple of 4"):
        stack(torch.randn(1, 8, 4, 2, 2))
