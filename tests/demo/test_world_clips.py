"""Models of the world's clips: what is loaded is what was trained, and clips are judged by what they show."""

import random

import comfy.ops
import pytest
import torch
from coherence.demo.evaluation import conditioning
from coherence.demo.training import image
from coherence.demo.training.first.video import TemporalLayers
from coherence.demo.world import model
from coherence.demo.world.clip_evaluation import ATTRIBUTES, TRANSFORMER, VIDEO, SeenClip, evaluate_clips, table
from coherence.demo.world.clip_reader import read_clip
from coherence.demo.world.latents import encode
from coherence.demo.world.motion import moving_caption, paint_clips, random_moving_scene
from coherence.demo.world.transformer import stack
from comfy.sample import sample_custom
from comfy.samplers import sampler_object

SIGMA = 2.0
CLIPS = 4


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    made = model.unet_module(torch.float32, "cpu", comfy.ops.disable_weight_init).diffusion_model
    image.initialise(made)
    for name, weight in made.named_parameters():
        if name.endswith("weight") and not weight.any():  # branches that would add nothing
            torch.nn.init.normal_(weight, std=0.1)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def clip():
    return model.load_clip()


def denoised(patcher, noise: torch.Tensor, context) -> torch.Tensor:
    """What ``patcher`` takes for the clean clip at SIGMA: one step of Euler's to 0."""
    run = sampler_object("euler"), torch.tensor([SIGMA, 0.0]), [context], [context], torch.zeros_like(noise)
    return patcher.model.process_latent_in(sample_custom(patcher, noise, 1.0, *run, disable_pbar=True))


@torch.inference_mode()
def test_a_loaded_video_model_computes_what_its_training_does(unet, clip):
    layers, generator = TemporalLayers(unet), torch.Generator().manual_seed(1)
    for each in layers.parameters():
        each.copy_(torch.randn(each.shape, generator=generator) / max(each.shape[-1], 16) ** 0.5)
    noise = torch.randn(VIDEO.shape, generator=generator)
    (context,) = conditioning(clip, ["a red cat on white, spinning"])
    plain = model.load_model(unet.state_dict())
    hooks = layers.on(list(range(len(noise))))
    predicted = unet(
        noise * SIGMA / (1 + SIGMA**2) ** 0.5,
        timesteps=plain.model.model_sampling.timestep(torch.tensor([SIGMA])).float().expand(len(noise)),
        context=context[0].expand(len(noise), -1, -1),
    )
    for hook in hooks:
        hook.remove()
    trained = SIGMA * (noise - predicted)
    loaded = denoised(model.load_video_model(unet.state_dict(), layers.state_dict()), noise, context)
    assert (loaded - trained).abs().max() < 1e-4 * trained.abs().max()
    assert (denoised(plain, noise, context) - trained).abs().max() > 0.01 * trained.abs().max()


@pytest.mark.parametrize("kind", [VIDEO, TRANSFORMER])
def test_the_latents_of_a_clip_come_apart_into_those_of_its_frames(kind):
    frames = encode(paint_clips([random_moving_scene(random.Random(0))], 16 if kind is VIDEO else 17)[0])
    latents = frames if kind is VIDEO else stack(frames[None])
    assert latents.shape == kind.shape
    torch.testing.assert_close(kind.by_frame(latents), frames)


@pytest.mark.slow
def test_the_video_model_shows_and_moves_things_as_its_captions_say():
    loaded = model.load_video_model(), model.load_clip("video_text"), model.load_vae()
    seen = evaluate_clips(VIDEO, *loaded, CLIPS, seed=1, steps=10, cfg=3.0)
    for name in ATTRIBUTES:
        assert sum(each.correct[name] for each in seen) >= CLIPS - 1, table(seen, VIDEO)


def test_drawn_clips_are_right_in_everything_and_others_in_what_they_share():
    rng = random.Random(4)
    clips = [random_moving_scene(rng) for _ in range(4)]
    drawn = list(paint_clips(clips, 16))

    def seen(shown: list[torch.Tensor]) -> list[SeenClip]:
        read = zip(shown, clips, strict=True)
        return [SeenClip(frames, moving_caption(clip, rng), clip, read_clip(frames)) for frames, clip in read]

    assert all(all(each.correct.values()) for each in seen(drawn))
    reversed_clips = seen([frames.flip(0) for frames in drawn])
    assert all(each.correct["colour"] and each.correct["background"] for each in reversed_clips)
    moving = [each for each in reversed_clips if each.moving.motion != "standing still"]
    assert not any(each.correct["motion"] for each in moving)
    assert f"| motion | {4 - len(moving)} of 4 |" in table(reversed_clips, VIDEO)
