"""The bilateral filter against kornia's and its own properties, in float64."""

import math

import kornia
import pytest
import torch
from coherence.frames.bilateral import bilateral_spatial, bilateral_temporal, restandardised
from hypothesis import given
from hypothesis import strategies as st

EXACT = {"atol": 1e-12, "rtol": 0}
kernels = st.sampled_from([1, 3, 5, 7])
sigmas = st.floats(0.05, 20)
sizes = st.integers(1, 9)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_kornia(latents: torch.Tensor, kernel: int, spatial: float, intensity: float) -> torch.Tensor:
    """Every frame and channel by itself: kornia adds up the distances of a picture's channels."""
    pictures = latents.reshape(-1, 1, *latents.shape[-2:])
    return kornia.filters.bilateral_blur(pictures, kernel, intensity, (spatial, spatial)).reshape(latents.shape)


@pytest.mark.parametrize("shape", [(5, 4, 16, 12), (2, 3, 5, 9, 10), (1, 1, 7, 7), (8, 8)])
@given(kernel=kernels, spatial=sigmas, intensity=sigmas)
def test_it_is_kornias_filter_of_every_frame_and_channel(shape, kernel, spatial, intensity):
    latents = normal(*shape)
    ours = bilateral_spatial(latents, kernel, spatial, intensity)
    torch.testing.assert_close(ours, by_kornia(latents, kernel, spatial, intensity), **EXACT)


@given(kernels, sigmas, sigmas, st.integers(2, 9))
def test_over_frames_it_is_kornias_filter_of_one_row(kernel, spatial, intensity, frames):
    kernel = min(kernel, 2 * frames - 1)  # kornia cannot reflect further
    clip = normal(frames, 3, 4)
    rows = clip.reshape(frames, -1).T[:, None, None, :]
    expected = kornia.filters.bilateral_blur(rows, (1, kernel), intensity, (1.0, spatial))
    ours = bilateral_temporal(clip, kernel, spatial, intensity)
    torch.testing.assert_close(ours, expected[:, 0, 0].T.reshape(clip.shape), **EXACT)


@given(kernels, sigmas, sigmas, sizes, sizes)
def test_values_stay_within_their_window(kernel, spatial, intensity, height, width):
    """Also where the window is wider than the picture, which kornia refuses."""
    latents = normal(2, 1, height, width)
    filtered = bilateral_spatial(latents, kernel, spatial, intensity)
    high = torch.nn.functional.max_pool2d(latents, kernel, 1, kernel // 2)  # reflected values lie in the window, too
    low = -torch.nn.functional.max_pool2d(-latents, kernel, 1, kernel // 2)
    assert (low - 1e-12 <= filtered).all()
    assert (filtered <= high + 1e-12).all()


@given(kernels, sigmas, sigmas, st.floats(-50, 50))
def test_a_constant_added_is_kept(kernel, spatial, intensity, constant):
    latents = normal(2, 2, 6, 7)
    moved = bilateral_spatial(latents + constant, kernel, spatial, intensity)
    torch.testing.assert_close(moved, bilateral_spatial(latents, kernel, spatial, intensity) + constant, **EXACT)
    flat = torch.full((2, 2, 6, 7), constant, dtype=torch.float64)
    assert torch.equal(bilateral_spatial(flat, kernel, spatial, intensity), flat)


@pytest.mark.parametrize("filtered", [bilateral_spatial, bilateral_temporal])
def test_nothing_is_averaged_at_the_least_intensity(filtered):
    latents = normal(4, 3, 8, 8)
    assert torch.equal(filtered(latents, 5, 1.0, 1e-300), latents)


def test_it_is_the_gaussian_blur_at_infinite_intensity():
    latents = normal(4, 3, 8, 9)
    blurred = kornia.filters.gaussian_blur2d(latents, 5, (1.3, 1.3))
    torch.testing.assert_close(bilateral_spatial(latents, 5, 1.3, math.inf), blurred, **EXACT)


@pytest.mark.parametrize("frames", [1, 2, 3, 16])
def test_still_clips_pass_the_filter_over_frames(frames):
    clip = normal(1, 4, 5).expand(frames, -1, -1)
    assert torch.equal(bilateral_temporal(clip, 5, 1.0, 1.0), clip)


def test_noise_shrinks_and_is_given_its_spread_back():
    noise = normal(4, 4, 64, 64)
    filtered = bilateral_spatial(noise, 5, 1.0, 1.0)
    assert filtered.std().item() == pytest.approx(0.71, abs=0.01)
    restored = restandardised(filtered, noise)
    axes = {"dim": (-2, -1), "correction": 0}
    torch.testing.assert_close(restored.std(**axes), noise.std(**axes), **EXACT)
    torch.testing.assert_close(restored.mean((-2, -1)), filtered.mean((-2, -1)), **EXACT)


def test_a_flat_channel_has_no_spread_to_restore():
    flat = torch.full((1, 2, 4, 4), 3.0)
    assert torch.equal(restandardised(flat, flat), flat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_filtered_in_single(dtype):
    latents = normal(3, 4, 16, 16, dtype=dtype)
    exact = bilateral_spatial(latents.double(), 5, 1.0, 1.0)
    filtered = bilateral_spatial(latents, 5, 1.0, 1.0)
    assert filtered.dtype == dtype
    assert (filtered.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * latents.abs().max()


@pytest.mark.parametrize("kernel", [0, 2, -3])
def test_a_kernel_without_a_centre_is_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel_size is {kernel}, expected an odd number"):
        bilateral_spatial(torch.zeros(1, 1, 4, 4), kernel, 1.0, 1.0)


@pytest.mark.parametrize("sigma", [{"sigma_spatial": 0.0}, {"sigma_intensity": -1.0}, {"sigma_intensity": math.nan}])
def test_sigmas_that_are_not_positive_are_refused(sigma):
    with pytest.raises(ValueError, match="expected both above 0"):
        bilateral_spatial(torch.zeros(1, 1, 4, 4), 5, **{"sigma_spatial": 1.0, "sigma_intensity": 1.0} | sigma)


@pytest.mark.parametrize("filtered", [bilateral_spatial, bilateral_temporal])
@pytest.mark.parametrize("shape", [(16, 4, 64, 64), (1, 16, 9, 60, 90)])
def test_memory_stays_below_four_latents(filtered, shape):
    """What is held at once: the latent itself and all that the filter allocates, counted by torch's profiler."""
    latents = normal(*shape, dtype=torch.float32)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=cpu, acc_events=True) as profile:
        filtered(latents, 5, 1.0, 1.0)
    held = peak = latents.nbytes
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert latents.nbytes < peak <= 4 * latents.nbytes
