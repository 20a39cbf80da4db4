"""Text2Video-Zero's motion field against the authors' code in diffusers, and the latents that its node makes."""

import pytest
import torch
from coherence.frames.motion_field import displacement, renoised, translated
from coherence.nodes.motion_field import MotionFieldNoise
from coherence.noise.streams import generator, plain_noise
from coherence.samplers.motion_field import MotionField
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    DisableNoise,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES

CELL = 8
"""Pixels of a latent's cell."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_content_moves_right_and_down():
    frame = torch.zeros(1, 4, 6)
    frame[0, 1, 2] = 1
    assert translated(frame, 2, 1).nonzero().tolist() == [[0, 2, 4]]
    assert translated(frame, -1, -1).nonzero().tolist() == [[0, 0, 1]]


def test_what_enters_is_mirrored_at_the_border():
    row = torch.arange(4.0)[None]
    assert translated(row, 2, 0).tolist() == [[1, 0, 0, 1]]
    assert translated(row, -2, 0).tolist() == [[2, 3, 3, 2]]
    assert translated(row, 5, 0).tolist() == [[3, 3, 2, 1]], "the mirrors face each other"


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_translation_takes_values_and_makes_none(right, down):
    frame = normal(2, 5, 7)
    assert set(translated(frame, right, down).flatten().tolist()) <= set(frame.flatten().tolist())
    assert torch.equal(translated(frame, 0, 0), frame)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-5, 4), (20, 20)])
def test_translation_is_the_warp_of_the_authors_but_for_the_direction(shift):
    """Theirs says where a pixel is taken from, ours where it goes."""
    from diffusers.pipelines.deprecated.text_to_video_synthesis import pipeline_text_to_video_zero as authors

    latent = normal(1, 4, 64, 64).float()
    field = authors.create_motion_field(-shift[0] * CELL, -shift[1] * CELL, [0, 1], "cpu", torch.float32)[1:]
    assert torch.equal(translated(latent, *shift), authors.warp_single_latent(latent, field))


def test_displacement_grows_with_the_frames_and_is_whole_cells():
    assert [displacement(frame, 12, CELL) for frame in range(5)] == [0, 2, 3, 4, 6]
    assert [displacement(frame, -4, CELL) for frame in range(5)] == [0, 0, -1, -2, -2]


def test_renoising_reaches_the_noise_level():
    clean, noise, more = (normal(100_000, seed=seed) for seed in range(3))
    assert renoised(clean + 3 * noise, more, 3, 5).sub(clean).std().item() == pytest.approx(5, rel=0.01)


def test_renoising_is_the_ddpm_step_between_two_times():
    alpha0, alpha1 = 0.3, 0.1
    sigmas = [(1 / alpha - 1) ** 0.5 for alpha in (alpha0, alpha1)]
    x0, noise = normal(50), normal(50, seed=1)
    ddpm = (alpha1 / alpha0) ** 0.5 * x0 + (1 - alpha1 / alpha0) ** 0.5 * noise
    torch.testing.assert_close(renoised(x0 / alpha0**0.5, noise, *sigmas) * alpha1**0.5, ddpm)


# The node ------------------------------------------------------------------------------------------------------------

STEPS = 10
FAMILY = FAMILIES["sd15"]


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models.load("sd15")


def empty(frames: int) -> dict:
    return {"samples": torch.zeros(frames, *FAMILY.latent_shape[1:])}


def sigmas_of(model, steps: int = STEPS) -> torch.Tensor:
    return BasicScheduler.execute(model, "normal", steps, 1.0)[0]


def moving(model, frames: int = 4, latent: dict | None = None, **settings) -> tuple[dict, torch.Tensor]:
    positive, negative = FAMILY.conditioning()
    chosen = {"noise_seed": 3, "delta_x": 0.0, "delta_y": 0.0, "t0": 0.6, "t1": 0.8} | settings
    latent = latent or empty(frames)
    sigmas = chosen.pop("sigmas", sigmas_of(model))
    return MotionFieldNoise.execute(model, positive, negative, 2.0, latent_image=latent, sigmas=sigmas, **chosen).args


def sampled(model, noise, latent: dict, sigmas: torch.Tensor) -> torch.Tensor:
    guider = CFGGuider.execute(model, *FAMILY.conditioning(), 2.0)[0]
    return SamplerCustomAdvanced.execute(noise, guider, KSamplerSelect.execute("euler")[0], sigmas, latent)[0][
        "samples"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("t1", [0.5, 0.8, 1.0])
def test_the_first_frame_is_the_picture_of_random_noise(model, t1):
    latent, rest = moving(model, frames=1, t0=0.3, t1=t1)
    assert torch.equal(rest, sigmas_of(model)[-len(rest) :])
    drawn = sampled(model, DisableNoise.execute()[0], latent, rest)
    with torch.random.fork_rng(devices=[]):
        plain = sampled(model, RandomNoise.execute(3)[0], empty(1), sigmas_of(model))
    assert (drawn - plain).abs().max() <= 1e-3 * plain.abs().max(), (
        "but for rounding, which a sharp random model amplifies"
    )


def test_frames_move_by_delta_under_noise_that_does_not(model):
    still, moved = (moving(model, delta_x=x, delta_y=y)[0]["samples"] for x, y in ((0, 0), (16, -8)))
    sigmas = sigmas_of(model)
    spread = (sigmas[1] ** 2 - sigmas[3] ** 2).sqrt() / model.get_model_object("latent_format").scale_factor
    assert torch.equal(moved[0], still[0])
    for frame in range(1, 4):
        noise = plain_noise((1, *FAMILY.latent_shape[1:]), generator(3, 0, frame))[0] * spread
        expected = translated(still[frame] - noise, 2 * frame, -frame)
        torch.testing.assert_close(moved[frame] - noise, expected, rtol=1e-5, atol=1e-4)


def test_a_frame_is_the_same_however_many_follow_and_whichever_are_asked_for(model):
    whole = moving(model, delta_x=8.0)[0]["samples"]
    assert torch.equal(moving(model, frames=2, delta_x=8.0)[0]["samples"], whole[:2])
    chosen, _ = moving(model, latent={**empty(2), "batch_index": [3, 0]}, delta_x=8.0)
    assert torch.equal(chosen["samples"], whole[[3, 0]])
    assert chosen["batch_index"] == [3, 0]
    joined, _ = moving(model, latent={**empty(len(whole)), "batch_index": [0, 1] * (len(whole) // 2)}, delta_x=8.0)
    assert torch.equal(joined["samples"], whole)


def test_global_random_state_stays_untouched(model):
    before = torch.get_rng_state()
    moving(model, delta_x=8.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_t0_and_t1_are_the_papers_steps_of_fifty():
    """Of timesteps in falling order, the authors' code takes those at −t − 1."""
    sigmas = torch.arange(50, -1, -1)
    assert MotionField(0, 0, t0=44 / 50, t1=47 / 50).levels(sigmas) == (50 - 47 - 1, 50 - 44 - 1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"t0": 0.8, "t1": 0.8}, r"t0 is 0\.8 and t1 0\.8.*at least one step below"),
        ({"t0": 0.9, "t1": 0.5}, "lower t0, raise t1"),
        ({"t0": 0.81, "t1": 0.84}, "with the 10 steps"),
        ({"latent": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, "video latent, expected an image latent"),
    ],
)
def test_what_cannot_be_is_refused_with_a_cure(model, settings, complaint):
    with pytest.raises(ValueError, match=f"(?s){complaint}"):
        moving(model, **settings)


def test_a_flow_model_is_refused(tiny_models):
    with pytest.raises(ValueError, match="flow model"):
        moving(tiny_models.load("wan21"), sigmas=torch.linspace(1, 0, STEPS + 1))


def test_a_model_that_makes_videos_of_pictures_is_refused(tiny_models):
    model, (positive, negative) = tiny_models.load("cogvideox"), FAMILIES["cogvideox"].conditioning()
    latent = {"samples": torch.zeros(4, 16, 16, 16)}
    with pytest.raises(ValueError, match=r"video model.*expected an image model"):
        MotionFieldNoise.execute(
            model, positive, negative, 1.0, 3, latent, sigmas_of(model), delta_x=8.0, delta_y=0.0, t0=0.6, t1=0.8
        )
