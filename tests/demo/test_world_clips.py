"""Models of the world's clips: what is loaded is what was trained, and clips are judged by what they show."""

import random

import comfy.ops
import pytest
import torch
from coherence.demo.evaluation import conditioning
from coherence.demo.training import image, transformer
from coherence.demo.training.first.video import TemporalLayers
from coherence.demo.world import model
from coherence.demo.world.clip_evaluation import ATTRIBUTES, TRANSFORMER, VIDEO, SeenClip, evaluate_clips, table
from coherence.demo.world.clip_reader import read_clip
from coherence.demo.world.motion import moving_caption, paint_clips, random_moving_scene
from coherence.demo.world.transformer import places, transformer_module
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


@pytest.fixture(scope="module")
def wan() -> torch.nn.Module:
    torch.manual_seed(0)
    made = transformer_module(torch.float32, "cpu", comfy.ops.disable_weight_init).diffusion_model
    transformer.initialise(made)
    for name, weight in made.named_parameters():
        if name.endswith(("o.weight", "ffn.2.weight", "head.weight")):  # branches that would add nothing
            torch.nn.init.normal_(weight, std=0.05)
    return made.requires_grad_(False).eval()


@torch.inference_mode()
def test_a_loaded_transformer_computes_what_its_training_does(wan, clip):
    level, noise = 0.7, torch.randn(TRANSFORMER.shape, generator=torch.Generator().manual_seed(1))
    (context,) = conditioning(clip, ["a red cat on white, spinning"])
    placed = torch.cat([noise * level, places(noise)], 1)
    trained = noise * level - level * wan(placed, torch.tensor([level * 1000]), context=context[0])
    run = sampler_object("euler"), torch.tensor([level, 0.0]), [context], [context], torch.zeros_like(noise)
    loaded = model.load_transformer(wan.state_dict())
    sampled = loaded.model.process_latent_in(sample_custom(loaded, noise, 1.0, *run, disable_pbar=True))
    assert (sampled - trained).abs().max() < 1e-4 * trained.abs().max()


def test_every_latent_is_told_when_and_where_it_is_alike_in_all_sizes():
    told = places(torch.zeros(2, 16, 3, 12, 20))
    assert torch.equal(told[0], told[1])
    assert len(told[0].flatten(1).unique(dim=1).T) == 3 * 12 * 20
    thrice = places(torch.zeros(1, 16, 9, 36, 60))
    torch.testing.assert_close(thrice[..., 1::3, 1::3, 1::3], told[:1])
    (first, *others), wanted = told[0, :4, :, 0, 0], torch.pi * (torch.arange(3) + 0.5) / 3
    torch.testing.assert_close(first, wanted.cos())
    torch.testing.assert_close(others[0], (2 * wanted).cos())


@torch.inference_mode()
def test_heads_begin_by_looking_at_a_neighbour(wan):
    maps = []

    def attend(_, q, k, v, heads, *__, **___):
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        if k.shape[2] == q.shape[2]:
            maps.append((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1).mean(0))
        return (torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, -1) @ v).transpose(1, 2).flatten(2)

    noise = torch.randn(4, 16, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    options = {"optimized_attention_override": attend}
    wan(
        torch.cat([noise, places(noise)], 1),
        torch.full((4,), 900.0),
        torch.zeros(4, 8, 128),
        transformer_options=options,
    )
    for layer in maps:
        *aside, free = layer[:, 64 + 3 * 8 + 3].unflatten(
            -1, (2, 8, 8)
        )  # from a patch in the middle of the second frame
        for attended in aside:
            beside = attended[1, 2:5, 2:5]
            assert 0.08 < attended.max() == beside.max() > 1.2 * beside[1, 1]
        assert free.max() < 0.1


def test_all_clips_have_the_motion_that_is_asked_for():
    loaded = model.load_transformer(), model.load_clip(), model.load_clip_vae()
    seen = evaluate_clips(TRANSFORMER, *loaded, 2, seed=1, steps=1, cfg=1.0, motion="spinning")
    assert {each.moving.motion for each in seen} == {"spinning"}
    assert all(each.text.endswith(", spinning") for each in seen)


@pytest.mark.slow
def test_the_video_model_shows_and_moves_things_as_its_captions_say():
    loaded = model.load_video_model(), model.load_clip("video_text"), model.load_vae()
    seen = evaluate_clips(VIDEO, *loaded, CLIPS, seed=1, steps=10, cfg=3.0)
    for name in ATTRIBUTES:
        assert sum(each.correct[name] for each in seen) >= CLIPS - 1, table(seen, VIDEO)


@pytest.mark.slow
def test_the_transformer_shows_and_moves_things_as_its_captions_say():
    loaded = model.load_transformer(), model.load_clip(), model.load_clip_vae()
    seen = evaluate_clips(TRANSFORMER, *loaded, CLIPS, seed=0, steps=10, cfg=3.0)
    for name in ATTRIBUTES:
        assert sum(each.correct[name] for each in seen) >= CLIPS - 1, table(seen, TRANSFORMER)


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
