"""Temporal consistency: what the flow finds, and what the figures say of clips whose truth is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from coherence.demo.clips import MOTIONS, render_clip
from coherence.demo.shapes import SHAPES
from coherence.metrics.consistency import agreement, means, temporal_consistency
from coherence.metrics.flow import optical_flow, visible, warp
from coherence.metrics.similarity import psnr, ssim
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SIDE = 96


def texture(seed: int = 0, side: int = 2 * SIDE) -> Tensor:
    """A picture (1, side, side, 3) of soft spots, float64."""
    spots = torch.rand(1, 3, side // 6, side // 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.interpolate(spots, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)


def panned(frames: int, dx: int, dy: int, seed: int = 0) -> Tensor:
    """A clip of a texture whose content moves by (dx, dy) pixels per frame."""
    start, whole = SIDE // 2, texture(seed)[0]
    windows = [whole[start - t * dy :, start - t * dx :][:SIDE, :SIDE] for t in range(frames)]
    return torch.stack(windows)


# Optical flow ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(dx=st.integers(-6, 6), dy=st.integers(-6, 6), seed=st.integers(0, 20))
def test_the_flow_of_a_pan_is_the_pan(dx: int, dy: int, seed: int) -> None:
    first, second = panned(2, dx, dy, seed).split(1)
    inner = optical_flow(first, second)[:, 16:-16, 16:-16]
    error = (inner - torch.tensor([dx, dy], dtype=torch.float64)).norm(dim=-1)
    assert error.quantile(0.9) < 0.05, "in a corner, into which new content comes, it may be lost"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_flow_of_a_sliding_shape_is_its_speed(shape: str) -> None:
    clip = render_clip(shape, "red", "green", frames=8, seed=2)  # seven pixels per frame, of about equal brightness
    speed = clip.centre[1] - clip.centre[0]
    flow = optical_flow(clip.frames[:1], clip.frames[1:2])
    off = (flow - speed).norm(dim=-1)[clip.mask[:1] > 0.5]
    assert off.mean() < 0.1 * speed.norm()


def test_equal_pictures_have_no_flow() -> None:
    assert optical_flow(texture(), texture()).abs().max() < 1e-12


def test_pictures_of_any_size_have_a_flow_in_their_own_pixels() -> None:
    for height, width in ((11, 40), (33, 97), (64, 21)):
        whole = texture(side=120)
        first, second = whole[:, 10 : 10 + height, 10 : 10 + width], whole[:, 10 : 10 + height, 9 : 9 + width]
        flow = optical_flow(first, second)
        assert flow.shape == (1, height, width, 2)
        middle = flow[0, height // 3 : -height // 3, width // 3 : -width // 3].mean((0, 1))
        assert middle.tolist() == pytest.approx([1, 0], abs=0.15)


def test_warp_looks_up_where_the_flow_points() -> None:
    picture = texture(side=24)
    flow = torch.zeros(1, 24, 24, 2, dtype=torch.float64)
    torch.testing.assert_close(warp(picture, flow), picture)
    flow[..., 0], flow[..., 1] = 3, -2
    torch.testing.assert_close(warp(picture, flow)[:, 2:, :-3], picture[:, :-2, 3:])
    flow[..., 0], flow[..., 1] = 0.5, 0
    halfway = (picture[:, :, :-1] + picture[:, :, 1:]) / 2
    torch.testing.assert_close(warp(picture, flow)[:, :, :-1], halfway)


def test_what_leaves_the_picture_or_does_not_return_is_not_visible() -> None:
    forward, backward = torch.zeros(1, 20, 30, 2), torch.zeros(1, 20, 30, 2)
    forward[..., 0], backward[..., 0] = 4, -4
    expected = torch.ones(1, 20, 30, dtype=torch.bool)
    expected[..., -4:] = False
    assert torch.equal(visible(forward, backward), expected)
    backward[:, :, 10:14] = 0  # pixels 6 to 9 arrive there
    expected[:, :, 6:10] = False
    assert torch.equal(visible(forward, backward), expected)


# Clips whose truth is known ---------------------------------------------------------------------------------------


def test_a_still_clip_is_perfectly_steady() -> None:
    figures = means(temporal_consistency(texture().expand(4, -1, -1, -1)))
    assert figures["ssim"] == pytest.approx(1, abs=1e-9)
    assert figures["psnr"] > 68
    assert [figures[name] for name in ("warped_error", "flicker", "motion")] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (-3, 2), (5, 5)])
def test_the_warped_error_of_a_pan_is_far_below_the_raw_difference(dx: int, dy: int) -> None:
    clip = panned(4, dx, dy)
    figures = temporal_consistency(clip)
    raw = clip.diff(dim=0).square().mean((1, 2, 3))
    assert (figures.warped_error < 0.02 * raw).all()
    assert figures.motion.tolist() == pytest.approx([math.hypot(dx, dy)] * 3, rel=0.35)  # edges that leave are guessed


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_warped_error_of_a_moving_shape_is_far_below_the_raw_difference(motion: str) -> None:
    clip = render_clip("star", "red", "white", motion, frames=6, seed=1).frames
    figures = temporal_consistency(clip)
    assert (figures.warped_error < 0.25 * clip.diff(dim=0).square().mean((1, 2, 3))).all()


def test_motion_is_the_speed_of_what_moves_and_more_where_it_is_faster() -> None:
    slow, fast = (render_clip("square", "red", "white", frames=frames) for frames in (25, 9))
    speeds = [means(temporal_consistency(clip.frames[:9]))["motion"] for clip in (slow, fast)]
    assert speeds == pytest.approx([2, 6], rel=0.2)


@given(amplitude=st.floats(0.01, 0.4))
@settings(max_examples=10, deadline=None)
def test_flicker_of_an_alternating_brightness_is_its_amplitude(amplitude: float) -> None:
    still = 0.3 + 0.2 * texture(side=24)
    clip = torch.cat([still + amplitude * (t % 2) for t in range(5)])
    figures = temporal_consistency(clip)
    assert figures.flicker.tolist() == pytest.approx([amplitude] * 4)
    assert figures.psnr.tolist() == pytest.approx([-20 * math.log10(amplitude)] * 4)


def test_noise_of_its_own_in_every_frame_is_an_error_that_no_motion_explains() -> None:
    still = texture(side=SIDE).expand(4, -1, -1, -1)
    sigma = 0.05
    noise = torch.randn(still.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = means(temporal_consistency(still + sigma * noise))["warped_error"]
    assert error == pytest.approx(2 * sigma**2, rel=0.2)


def test_figures_are_those_of_each_pair_in_order() -> None:
    clip = torch.cat([texture(), texture(), texture(1), texture(1)])
    figures = temporal_consistency(clip)
    torch.testing.assert_close(figures.ssim, ssim(clip[:-1], clip[1:]))
    torch.testing.assert_close(figures.psnr, psnr(clip[:-1], clip[1:]))
    assert figures.flicker[0] == figures.flicker[2] == 0 < figures.flicker[1]


def test_frames_that_show_nothing_in_common_have_no_warped_error_and_the_mean_leaves_them_out() -> None:
    dark = torch.linspace(0, 0.5, 32, dtype=torch.float64)[:, None, None].expand(1, 32, 32, 3)
    bright = dark + 0.5  # as if the ramp had moved by all its height
    figures = temporal_consistency(torch.cat([dark, bright, bright]))
    assert figures.warped_error.isnan().tolist() == figures.motion.isnan().tolist() == [True, False]
    assert means(figures)["warped_error"] == pytest.approx(0, abs=1e-12)


# Against a reference ----------------------------------------------------------------------------------------------


def test_a_clip_agrees_with_itself_and_less_with_another() -> None:
    clip, other = panned(3, 1, 0), panned(3, 1, 0, seed=1)
    same = means(agreement(clip, clip))
    assert same["ssim"] == pytest.approx(1)
    assert same["psnr"] > 68
    figures = agreement(clip, clip.lerp(other, 0.1))
    torch.testing.assert_close(figures.ssim, ssim(clip, clip.lerp(other, 0.1)))
    torch.testing.assert_close(figures.psnr, psnr(clip, clip.lerp(other, 0.1)))


def test_the_warped_error_of_an_edit_is_that_along_the_motion_of_its_source() -> None:
    source = render_clip("circle", "red", "white", frames=4, seed=1).frames
    edit = render_clip("square", "blue", "white", frames=4, seed=1).frames
    stuck = edit[:1].expand(4, -1, -1, -1)
    assert means(temporal_consistency(stuck))["warped_error"] < 1e-12, (
        "by itself a picture that stands still is perfect"
    )
    errors = [means(agreement(clip, source))["warped_error"] for clip in (source, edit, stuck)]
    assert errors == sorted(errors)
    assert errors[2] > 3 * errors[1]
    own = temporal_consistency(source).warped_error
    torch.testing.assert_close(agreement(source, source).warped_error, own)


def test_single_precision_gives_the_same_figures_and_half_precision_is_not_computed_in_half() -> None:
    clip = panned(3, 1, 1)
    exact = means(temporal_consistency(clip))
    assert means(temporal_consistency(clip.float())) == pytest.approx(exact, rel=1e-3)
    assert means(temporal_consistency(clip.half())) == pytest.approx(exact, rel=0.1)


def test_clips_that_cannot_be_measured_are_refused() -> None:
    clip = panned(3, 1, 0)
    with pytest.raises(ValueError, match=r"\(1, 96, 96, 3\), expected \(F, H, W, 3\) of two frames"):
        temporal_consistency(clip[:1])
    with pytest.raises(ValueError, match=r"reference has shape \(2, 96, 96, 3\) and images \(3, 96, 96, 3\)"):
        agreement(clip, clip[:2])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length() -> None:
    def most_living(frames: int) -> int:
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watch(TorchDispatchMode):
            most = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                Watch.most = max(Watch.most, result.numel() if isinstance(result, Tensor) else 0)
                return result

        clip = texture(side=32).expand(frames, -1, -1, -1)
        with Watch():
            temporal_consistency(clip)
            agreement(clip, clip)
        return Watch.most

    assert most_living(12) == most_living(4)
