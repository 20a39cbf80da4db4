"""Text2Video-Zero's background smoothing: the authors' tensors in float64, and its limits in the node."""

import pytest
import torch
import torch.nn.functional as F
from coherence.demo.model import load_model
from coherence.frames.motion_field import foreground, smoothed, translated
from coherence.nodes.motion_field import MotionFieldNoise
from comfy.samplers import calculate_sigmas
from watching import DEMO, difference

FRAMES, SIDE, DELTA = 4, 16, 8.0
"""At 8 pixels a frame the content moves by a cell."""


@pytest.fixture(scope="module")
def model():
    return load_model()


def moving(model, frames=FRAMES, indices=None, **more):
    latent = {"samples": torch.zeros(frames, 4, SIDE, SIDE)} | ({"batch_index": indices} if indices else {})
    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "karras", 6)
    how = {"delta_x": DELTA, "delta_y": 0.0, "t0": 0.4, "t1": 0.7}
    with torch.inference_mode():
        return MotionFieldNoise.execute(model, *DEMO.conditioning(), 1.0, 3, latent, sigmas, **how, **more)[0][
            "samples"
        ]


def masks(frames=FRAMES):
    """A square of 24 pixels that moves by a cell a frame."""
    made = torch.zeros(frames, 128, 128)
    for frame in range(frames):
        made[frame, 48:72, 40 + 8 * frame : 64 + 8 * frame] = 1
    return made


def authors(clip, masks, alpha):
    """As their pipeline has it: the first frame without its foreground, moved with its mask, and the two mixed where
    neither foreground is."""
    dilated = [F.conv2d(F.pad(F.interpolate(m[None, None], (SIDE, SIDE)), [2] * 4), torch.ones(1, 1, 5, 5).double()) > 0
               for m in masks.double()]  # fmt: skip
    fore = torch.cat(dilated)[:, 0].double()
    without = clip[0] * (1 - fore[0])
    moved = torch.stack([translated(without, frame, 0) for frame in range(len(clip))])
    fore_moved = torch.stack([translated(fore[0], frame, 0) for frame in range(len(clip))])
    back = ((1 - fore) * (1 - fore_moved))[:, None]
    return (1 - back) * clip + back * ((1 - alpha) * clip + alpha * moved)


def test_the_node_is_the_authors_pipeline(model):
    plain, alpha = moving(model), 0.6
    ours = moving(model, mask=masks(), background=alpha)
    theirs = authors(plain.double(), masks(), alpha)
    assert difference(ours.double(), theirs) <= 1e-6
    assert difference(ours, plain) > 0.1


def test_nothing_is_smoothed_by_0_or_where_all_is_foreground(model):
    plain = moving(model)
    assert torch.equal(moving(model, mask=masks(), background=0.0), plain)
    assert torch.equal(moving(model, mask=torch.ones(1, 64, 64)), plain)
    assert torch.equal(moving(model, background=1.0), plain)


def test_by_1_the_background_is_the_first_frames_moved(model):
    smooth = moving(model, mask=torch.zeros(64, 64), background=1.0)
    for frame, each in enumerate(smooth):
        assert difference(each, translated(smooth[0], frame, 0)) <= 1e-6


def test_the_foreground_keeps_its_bits():
    frames = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own, first = torch.zeros(8, 8), torch.zeros(8, 8)
    own[2:4, 2:4] = first[5:7, 1:3] = 1
    out = smoothed(frames[1], frames[0], own, first, 1, 0, 0.6)
    kept = (own + translated(first, 1, 0)) > 0
    assert torch.equal(out[:, kept], frames[1][:, kept])
    assert (out != frames[1])[:, ~kept].all()


def test_masks_are_widened_by_two_cells():
    mask = torch.zeros(1, 128, 128)
    mask[0, 64:72, 64:72] = 1
    cells = foreground(mask, 16, 16)[0]
    assert cells.nonzero().min(0).values.tolist() == [6, 6]
    assert cells.nonzero().max(0).values.tolist() == [10, 10]


def test_frames_of_a_part_of_the_clip_are_those_of_the_whole(model):
    whole = moving(model, mask=masks())
    assert torch.equal(moving(model, 2, [2, 0], mask=masks()[[2, 0]]), whole[[2, 0]])


def test_masks_that_do_not_fit_are_refused_with_a_cure(model):
    with pytest.raises(ValueError, match="mask holds 3 masks, expected one for each of the 4 frames, or one for all"):
        moving(model, mask=masks(3))
    with pytest.raises(ValueError, match=r"mask holds frames 2, 3.*comes from frame 0"):
        moving(model, 2, [2, 3], mask=masks(2))
