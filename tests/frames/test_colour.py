"""Colours of clips matched to others: what becomes of their statistics, and what stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from coherence.demo.clips import render_clip
from coherence.frames.colour import Match, _to_rgb, matched_latents, matched_pictures
from coherence.frames.colour_maps import METHODS, MOST_GAIN, STATISTICS
from coherence.metrics.flow import optical_flow
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.color import rgb_to_lab
from kornia.contrib import histogram_matching
from torch import Tensor

LINEAR = ("mean_std", "covariance")
every_method = pytest.mark.parametrize("method", METHODS)
few = settings(max_examples=8, deadline=None)


def texture(frames: int = 1, seed: int = 0, low: float = 0.35, high: float = 0.65, size: tuple = (24, 30)) -> Tensor:
    """A clip of soft spots in the middle of the range, so that no colour leaves it: (frames, *size, 3) float64."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.rand(frames, 3, size[0] // 3, size[1] // 3, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(spots, size, mode="bicubic").clamp(0, 1)
    return (low + (high - low) * smooth).movedim(1, -1)


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lab(pictures: Tensor) -> Tensor:
    """(frames, 3, pixels)."""
    return rgb_to_lab(pictures.movedim(-1, 1).double()).flatten(2)


def mean_std(pictures: Tensor) -> Tensor:
    return torch.cat([lab(pictures).mean(-1), lab(pictures).std(-1, correction=0)], dim=-1)


def covariance(pictures: Tensor) -> Tensor:
    return torch.stack([torch.cov(each, correction=0) for each in lab(pictures)])


# At momentum 0 a frame's statistics become the reference's --------------------------------------------------------


@few
@given(seed=st.integers(0, 99), low=st.floats(0.35, 0.45), high=st.floats(0.55, 0.65))
def test_mean_and_spread_of_every_frame_become_the_references(seed, low, high):
    reference = texture(1, seed + 100, low, high, size=(33, 21))
    for method in LINEAR:
        matched = matched_pictures(texture(3, seed), reference, Match(method, momentum=0.0))
        torch.testing.assert_close(mean_std(matched), mean_std(reference).expand(3, -1), rtol=1e-3, atol=1e-3)
        if method == "covariance":
            torch.testing.assert_close(
                covariance(matched), covariance(reference).expand(3, -1, -1), rtol=1e-3, atol=0.05
            )


def test_several_frames_of_reference_count_as_one_picture():
    reference = torch.cat([texture(1, 5, 0.3, 0.5), texture(1, 6, 0.5, 0.7)])
    as_one = reference.flatten(0, 1)[None]
    for method in LINEAR:
        several, one = (matched_pictures(texture(2), each, Match(method)) for each in (reference, as_one))
        torch.testing.assert_close(several, one)
    several, one = (matched_pictures(texture(2), each, Match("histogram")) for each in (reference, as_one))
    assert (several - one).abs().mean() < 1e-3


def test_the_histogram_becomes_the_references_as_kornia_matches_it():
    clip, reference = texture(1, size=(60, 60)), texture(1, 1, 0.3, 0.7, size=(60, 60))
    ours = lab(matched_pictures(clip, reference, Match("histogram", momentum=0.0)))[0]
    for channel, source, target in zip(ours, lab(clip)[0], lab(reference)[0], strict=True):
        error = (channel - histogram_matching(source, target)).abs()
        assert error.mean() < 0.02
        assert error.mean() < 0.02 * (source - target).abs().mean()


@few
@given(seed=st.integers(0, 99), stretch=st.floats(0.1, 9))
def test_the_histogram_method_keeps_the_order_of_every_channel(seed, stretch):
    statistics, weights = STATISTICS["histogram"], torch.ones(500)
    x, other = latents(2, 500, seed=seed), stretch * latents(2, 500, seed=seed + 1) ** 3
    moved = statistics.moved(
        2 * x, *(statistics.measure(each, weights) for each in (x, other))
    )  # beyond both ends, too
    for before, after in zip(x, moved, strict=True):
        assert (after[before.argsort()].diff() >= -1e-12).all()


# What stays ----------------------------------------------------------------------------------------------------------


@every_method
@given(seed=st.integers(0, 99), momentum=st.floats(0, 1))
@few
def test_a_clip_matched_to_itself_stays_as_it_is(method, seed, momentum):
    """One whose colours do not change: a texture that moves on and comes in again at the other side."""
    clip = torch.cat([texture(1, seed).roll(7 * frame, dims=2) for frame in range(4)])
    torch.testing.assert_close(matched_pictures(clip, clip, Match(method, momentum)), clip, atol=1e-3, rtol=0)
    torch.testing.assert_close(matched_pictures(clip, clip[:1], Match(method, momentum)), clip, atol=1e-6, rtol=0)


@every_method
def test_plain_and_grey_pictures_stay_as_they_are(method):
    for colour in ([0.0, 0, 0], [1.0, 1, 1], [0.5, 0.5, 0.5], [1.0, 0, 0]):
        plain = torch.tensor(colour).expand(2, 12, 12, 3)
        torch.testing.assert_close(matched_pictures(plain, plain, Match(method)), plain, atol=1e-5, rtol=0)
    grey = texture()[..., :1].expand(-1, -1, -1, 3)
    torch.testing.assert_close(matched_pictures(grey, grey, Match(method)), grey, atol=1e-5, rtol=0)


@every_method
def test_strength_goes_from_nothing_to_all_in_a_straight_line(method):
    clip, reference = texture(2), texture(1, 1, 0.5, 0.7)
    none, half, full = (matched_pictures(clip, reference, Match(method, 0.5, strength)) for strength in (0.0, 0.5, 1.0))
    assert torch.equal(none, clip)
    torch.testing.assert_close(half, (none + full) / 2)
    assert (full - clip).abs().mean() > 0.02


@every_method
@given(seed=st.integers(0, 99))
@few
def test_what_comes_out_lies_between_0_and_1(method, seed):
    clip, reference = texture(2, seed, 0.0, 1.0), texture(1, seed + 1, 0.5, 1.0)
    for pair in ((clip, reference), (reference, clip), (2 * clip, reference)):
        matched = matched_pictures(*pair, Match(method, momentum=0.5))
        assert 0 <= matched.min() <= matched.max() <= 1


@every_method
def test_alpha_and_dtype_stay_and_nothing_given_is_changed(method):
    clip = torch.cat([texture(3), texture(3, 9)[..., :1]], dim=-1)
    before = clip.clone()
    matched = matched_pictures(clip, texture(1, 1), Match(method))
    assert torch.equal(clip, before)
    assert torch.equal(matched[..., 3], clip[..., 3])
    torch.testing.assert_close(matched[..., :3], matched_pictures(clip[..., :3], texture(1, 1), Match(method)))
    half = matched_pictures(clip.half(), texture(1, 1), Match(method))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), matched, atol=5e-3, rtol=0)


def test_noise_in_what_is_flat_is_not_blown_up():
    flat = 0.5 + 1e-3 * (texture() - 0.5)
    for method in LINEAR:
        matched = matched_pictures(flat, texture(1, 1, 0.2, 0.8), Match(method))
        assert (lab(matched).std(-1) < 1.01 * MOST_GAIN * lab(flat).std(-1).amax()).all()


def test_a_colour_outside_of_rgb_keeps_its_lightness_and_its_hue():
    axes = [torch.linspace(*ends, 6) for ends in ((0.2, 0.8), (-1, 1), (-1, 1))]
    wild = torch.cartesian_prod(*axes).mT.unflatten(1, (6, 36))
    made = _to_rgb(wild)
    assert made.min() >= 0
    assert made.max() <= 1
    there = rgb_to_lab(made) / 100
    torch.testing.assert_close(there[0], wild[0], atol=5e-4, rtol=0)  # cut off: up to 0.22
    hue, before = (torch.atan2(each[2], each[1]) for each in (there, wild))
    clear = there[1:].norm(dim=0) > 0.1
    assert torch.cos(hue - before)[clear].min() > 0.8  # cut off: 0.38
    inside = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    torch.testing.assert_close(_to_rgb(rgb_to_lab(inside) / 100), inside, atol=1e-4, rtol=0)


# Over the frames -----------------------------------------------------------------------------------------------------


@every_method
def test_without_momentum_a_frame_does_not_depend_on_the_others(method):
    clip, reference, match = texture(5, low=0.2, high=0.8), texture(2, 1), Match(method, momentum=0.0)
    parts = torch.cat([matched_pictures(part, reference, match) for part in clip.split([1, 3, 1])])
    assert torch.equal(matched_pictures(clip, reference, match), parts)


@every_method
def test_what_flickers_in_the_statistics_does_not_flicker_in_the_correction(method):
    """A dark bar comes and goes; where it is not, momentum keeps the picture steady."""
    clip = texture(1).expand(16, -1, -1, -1).clone()
    clip[::2, :, :6] = 0.1
    rest = clip[:, :, 6:]
    swings = []
    for momentum in (0.0, 0.9, 1.0):
        matched = matched_pictures(clip, texture(1, 1), Match(method, momentum))[:, :, 6:]
        assert torch.equal(rest[0], rest[1])
        swings.append(matched.diff(dim=0).abs().mean().item())
    assert swings[1] < 0.15 * swings[0]
    assert swings[2] < 0.05 * swings[0]


def drifting(clip: Tensor) -> Tensor:
    """In 100 frames saturation falls by 30% and contrast by 40%, and a warm cast grows."""
    time = (torch.arange(len(clip)) / 100)[:, None, None, None]
    luma = (clip @ torch.tensor([0.299, 0.587, 0.114]))[..., None]
    faded = 0.5 + (luma + (clip - luma) * (1 - 0.3 * time) - 0.5) * (1 - 0.4 * time)
    return (faded + 0.1 * time * torch.tensor([1.0, 0.7, 0.4])).clamp(0, 1)


def slopes(clip: Tensor) -> Tensor:
    """Per frame: lightness, contrast, saturation."""
    found = lab(clip)
    figures = torch.stack([found[:, 0].mean(-1), found[:, 0].std(-1), found[:, 1:].norm(dim=1).mean(-1)], dim=-1)
    time = torch.arange(len(clip), dtype=torch.float64) - (len(clip) - 1) / 2
    return time @ figures / (time @ time)


KNOWN = {
    "": ("star", "yellow", "purple", "slide"),
    "at the edge of RGB": ("circle", "orange", "blue", "turn"),
    "of edges that turn": ("triangle", "blue", "yellow", "turn"),
}


@every_method
@pytest.mark.parametrize("kind", KNOWN.values(), ids=KNOWN)
def test_a_known_drift_is_removed_and_the_motion_stays(method, kind):
    *scene, motion = kind
    clip = render_clip(*scene, motion, 32, seed=1, size=64).frames
    drifted = drifting(clip)
    matched = matched_pictures(drifted, clip[:1], Match(method))
    drift, left = (slopes(each) - slopes(clip) for each in (drifted, matched))
    assert (drift.abs() > 0.025).all(), "more than 2.5 in 100 frames"
    assert (left.abs() < 0.1 * drift.abs()).all()
    wrong = (matched - clip).abs().mean() / (drifted - clip).abs().mean()
    if motion == "turn":  # a circle turns unseen; and where thing and background share a channel, edges bend it
        assert wrong < 0.25
        return
    assert wrong < 0.1
    flow, moved = (optical_flow(each[:1], each[1:2]) for each in (clip, matched))
    assert (moved - flow).norm(dim=-1).mean() < 0.05 * flow.norm(dim=-1).mean()


# The mask ------------------------------------------------------------------------------------------------------------


@every_method
def test_only_what_the_mask_selects_is_measured_and_all_is_moved(method):
    clip = texture(3)
    mask = torch.zeros(24, 30)
    mask[:, :15] = 1
    other = clip.clone()
    other[:, :, 15:] = texture(3, 5, 0.0, 1.0)[:, :, 15:]
    reference, match = texture(1, 1, 0.4, 0.8), Match(method, 0.5)
    masked, again = (matched_pictures(each, reference, match, mask) for each in (clip, other))
    torch.testing.assert_close(masked[:, :, :15], again[:, :, :15])
    assert (again - other)[:, :, 15:].abs().mean() > 0.01
    cropped = matched_pictures(clip[:, :, :15], reference[:, :, :15], match)
    torch.testing.assert_close(masked[:, :, :15], cropped)


def test_a_mask_of_another_size_and_one_for_each_frame_count_as_the_same():
    mask = torch.zeros(3, 24, 30)
    mask[:, :12] = 1
    clip, reference = texture(3), texture(1, 1)
    whole = matched_pictures(clip, reference, Match(), mask)
    assert torch.equal(whole, matched_pictures(clip, reference, Match(), mask[0]))
    assert torch.equal(whole, matched_pictures(clip, reference, Match(), mask[:1, ::2, ::2]))
    assert not torch.equal(whole, matched_pictures(clip, reference, Match()))


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mask has 2 frames and images 3, expected 1 or"):
        matched_pictures(texture(3), texture(), Match(), torch.ones(2, 24, 30))
    nothing = torch.ones(3, 24, 30)
    nothing[1] = 0
    with pytest.raises(ValueError, match=r"mask selects nothing in frame 1, expected"):
        matched_pictures(texture(3), texture(), Match(), nothing)


# Latents -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("shape", [(5, 4, 8, 9), (5, 16, 1, 8, 9), (2, 16, 5, 8, 9)])
def test_channels_of_every_frame_get_the_references_statistics(method, shape):
    reference = 2 + 1.5 * latents(2, shape[1], *([1] * (len(shape) - 4)), 7, 6, seed=1)
    matched = matched_latents(latents(*shape), reference, Match(method, momentum=0.0))
    frames = matched.movedim(1, -3).unflatten(0, (shape[0],)).flatten(0, -4).flatten(2)
    wanted = reference.movedim(1, -3).flatten(0, -4).movedim(0, 1).flatten(1)
    for frame in frames:
        torch.testing.assert_close(frame.mean(-1), wanted.mean(-1))
        torch.testing.assert_close(frame.std(-1, correction=0), wanted.std(-1, correction=0))
        if method == "covariance":
            torch.testing.assert_close(
                torch.cov(frame, correction=0), torch.cov(wanted, correction=0), atol=1e-6, rtol=1e-6
            )


def test_each_video_of_a_batch_is_a_clip_and_a_batch_of_pictures_is_one():
    videos, reference = latents(2, 4, 6, 8, 8), latents(1, 4, 1, 8, 8, seed=1) + 1
    together = matched_latents(videos, reference, Match())
    alone = torch.cat([matched_latents(each, reference, Match()) for each in videos.split(1)])
    assert torch.equal(together, alone)
    pictures = videos[0].movedim(1, 0)
    torch.testing.assert_close(matched_latents(pictures, reference[:, :, 0], Match()), together[0].movedim(1, 0))
    torch.testing.assert_close(
        matched_latents(pictures[:, :, None], reference, Match())[:, :, 0], together[0].movedim(1, 0)
    )


def test_latents_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="reference has 16 channels and latent 4, expected the same"):
        matched_latents(latents(2, 4, 8, 8), latents(2, 16, 8, 8), Match())
    with pytest.raises(ValueError, match=r"reference has shape \(1, 4, 8\), expected \(frames"):
        matched_latents(latents(2, 4, 8, 8), latents(1, 4, 8), Match())
