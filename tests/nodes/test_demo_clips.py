"""Rendered clips show what they say, where they say, the same for the same seed."""

import av
import numpy as np
import pytest
import torch
from coherence.demo.clips import KINDS, MOTIONS, render_clip
from coherence.demo.reader import read
from coherence.demo.shapes import COLOURS
from coherence.hosting.provision import PACK
from coherence.nodes.demo import CoherenceDemoClip
from coherence.scripts.draw_clip import CLIP, main

every_motion = pytest.mark.parametrize("motion", MOTIONS)


def areas(clip) -> torch.Tensor:
    return clip.mask.sum((1, 2))


@every_motion
@pytest.mark.parametrize("shape", KINDS)
def test_the_mask_is_exactly_where_the_shape_is(shape, motion):
    clip = render_clip(shape, "red", "white", motion, frames=5, seed=3)
    red, white = torch.tensor(COLOURS["red"]), torch.tensor(COLOURS["white"])
    assert clip.frames.shape == (5, 128, 128, 3)
    torch.testing.assert_close(clip.frames, white + clip.mask[..., None] * (red - white))
    assert clip.mask.min() == 0
    assert clip.mask.max() == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_clip_is_read_as_what_it_was_drawn_as(seed):
    clip = render_clip("square", "blue", "yellow", seed=seed)
    reading = read(clip.frames)
    assert {(scene.shape, scene.colour, scene.background) for scene in reading.scenes} == {("square", "blue", "yellow")}
    assert (reading.centre - clip.centre).abs().max() < 1


@every_motion
def test_only_the_motion_asked_for_is_shown(motion):
    clip = render_clip("square", "blue", "yellow", motion, frames=7, seed=1)
    moved = (clip.centre - clip.centre[0]).norm(dim=1)
    assert (moved[-1] > 40) == (motion in ("slide", "all"))
    grown = areas(clip) / areas(clip)[0]
    assert bool((grown[-1] - 1).abs() > 0.2) == (motion in ("grow", "all"))
    if motion == "turn":
        first, middle, last = clip.mask[[0, 3, 6]]
        assert (middle - first).abs().sum() > 0.1 * first.sum()
        torch.testing.assert_close(last, first, atol=1e-3, rtol=0)  # a quarter turn of a square


@every_motion
def test_steps_are_even_in_time(motion):
    steps = render_clip("star", "red", "black", motion, frames=9).centre.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-4, rtol=0)


def test_the_seed_alone_decides_the_path():
    first = render_clip("circle", "red", "white", "all", frames=3, seed=5)
    again = render_clip("cross", "green", "black", "all", frames=5, seed=5)
    other = render_clip("circle", "red", "white", "all", frames=3, seed=6)
    torch.testing.assert_close(again.centre[::2], first.centre)
    assert (other.centre - first.centre).abs().max() > 1


def test_a_larger_clip_is_the_same_picture():
    small, large = (render_clip("star", "red", "white", "all", frames=2, size=size) for size in (128, 256))
    shrunk = torch.nn.functional.avg_pool2d(large.mask[:, None], 2)[:, 0]
    assert (shrunk - small.mask).abs().mean() < 2e-3  # antialiasing is one pixel wide in both


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"motion": "fly"}, "motion is 'fly', expected one of slide"),
        ({"background": "red"}, "both red"),
        ({"frames": 0}, "frames is 0"),
        ({"shape": "unicorn"}, "shape is 'unicorn', expected one of circle, .*umbrella"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        render_clip(**{"shape": "circle", "colour": "red", "background": "white"} | wrong)


def test_the_node_gives_the_frames_and_their_mask():
    images, mask = CoherenceDemoClip.execute("circle", "red", "white", "slide", 4, 64, 2).args
    clip = render_clip("circle", "red", "white", "slide", 4, 2, 64)
    torch.testing.assert_close(images, clip.frames)
    torch.testing.assert_close(mask, clip.mask)


def test_the_shipped_clip_is_small_and_shows_these_frames(tmp_path):
    assert CLIP.stat().st_size < 100_000
    main(tmp_path / "again.mp4")
    clip = render_clip("circle", "red", "white").frames
    for path in (CLIP, tmp_path / "again.mp4"):
        with av.open(str(path)) as container:
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]) / 255
        assert shown.shape == (16, 128, 128, 3)
        assert np.abs(shown - clip.numpy()).mean() < 0.02
    assert CLIP.is_relative_to(PACK / "workflows")
