"""What a clip looks like and how fast that drifts: each figure by what it must and must not see; intervals by how often
they hold the truth."""

import math

import pytest
import torch
import torch.nn.functional as F
from coherence.metrics.look import PER, drift, drifts, look, seam_jumps
from torch import Tensor


def texture(frames: int = 1, side: int = 48) -> Tensor:
    spots = torch.rand(1, 3, side // 6, side // 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = F.interpolate(spots, (side, side), mode="bicubic").clamp(0, 1)
    return (0.3 + 0.4 * smooth).movedim(1, -1).expand(frames, -1, -1, -1)


def grey(levels: Tensor) -> Tensor:
    """Pictures of one level each, (F, 8, 8, 3)."""
    return levels[:, None, None, None].expand(-1, 8, 8, 3)


def autoregressive(frames: int, phi: float, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(frames, generator=generator, dtype=torch.float64)
    drawn[0] /= math.sqrt(1 - phi**2)
    for frame in range(1, frames):
        drawn[frame] += phi * drawn[frame - 1]
    return drawn


def test_black_white_and_grey_have_the_lightness_that_cielab_gives_them_and_no_colour():
    seen = look(grey(torch.tensor([0.0, 1.0, 0.5])))
    assert seen.lightness.tolist() == pytest.approx([0, 100, 53.39], abs=0.01)
    assert seen.contrast.tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert seen.saturation.tolist() == pytest.approx([0] * 3, abs=0.01)
    assert seen.sharpness.isnan().all()


def test_each_figure_sees_its_own_change():
    picture = texture()
    luma = (picture @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[..., None]
    flat = picture.mean((1, 2), keepdim=True)
    hard = (picture > 0.5).double()
    softer = F.avg_pool2d(F.pad(hard.movedim(-1, 1), (2,) * 4, mode="replicate"), 5, 1).movedim(1, -1)
    plain, bright, faded, flatter, sharp, soft = (
        look(each) for each in (picture, picture + 0.1, luma.lerp(picture, 0.5), flat.lerp(picture, 0.5), hard, softer)
    )
    assert bright.lightness > plain.lightness + 5
    assert faded.saturation < 0.6 * plain.saturation
    assert faded.lightness.item() == pytest.approx(plain.lightness.item(), abs=1)
    assert flatter.contrast.item() == pytest.approx(plain.contrast.item() / 2, rel=0.05)
    assert flatter.sharpness.item() == pytest.approx(plain.sharpness.item(), rel=0.02)
    assert bright.sharpness.item() == pytest.approx(plain.sharpness.item(), rel=0.02)
    assert soft.sharpness < 0.7 * sharp.sharpness


def test_a_line_has_its_slope_as_drift_and_no_doubt():
    for slope in (0.0, 0.3, -2.0):
        found = drift(5 + slope * torch.arange(9.0))
        assert found == pytest.approx((PER * slope,) * 3, abs=1e-4)


def test_too_few_frames_have_no_interval_and_one_or_none_has_no_drift():
    assert drift(torch.tensor([1.0, 2.0, 4.0])).value == pytest.approx(150)
    assert math.isnan(drift(torch.tensor([1.0, 2.0, 4.0])).low)
    assert math.isnan(drift(torch.tensor([1.0])).value)
    assert math.isnan(drift(torch.tensor([1.0, math.nan, 2.0, 3.0, 4.0])).value)


def test_units_and_levels_do_not_matter():
    values = autoregressive(12, 0.5, torch.Generator().manual_seed(1))
    for scale in (1e-6, 1e6):
        assert drift(scale * (values + 7)) == pytest.approx([scale * each for each in drift(values)], rel=1e-6)


@pytest.mark.parametrize(("frames", "phi"), [(16, 0.0), (16, 0.7), (48, 0.9)])
def test_intervals_hold_the_true_drift_however_alike_neighbours_are(frames, phi):
    generator, trend = torch.Generator().manual_seed(0), 0.05 * torch.arange(frames)
    found = [drift(trend + autoregressive(frames, phi, generator)) for _ in range(80)]
    assert sum(each.low <= 5 <= each.high for each in found) >= 0.9 * len(found)


def test_an_interval_for_independent_frames_is_narrower_than_for_frames_that_go_together():
    generator = torch.Generator().manual_seed(3)
    widths = [drift(autoregressive(64, phi, generator)) for phi in (0.0, 0.9)]
    assert widths[1].high - widths[1].low > 2 * (widths[0].high - widths[0].low)


def test_the_drift_of_a_clip_that_gets_brighter_is_its_rate():
    seen = look(grey(torch.linspace(0.4, 0.45, 20, dtype=torch.float64)))
    found = drifts(seen)["lightness"]
    assert found.value == pytest.approx(PER * (seen.lightness[-1] - seen.lightness[0]).item() / 19, rel=0.01)
    assert found.low < found.value < found.high
    assert math.isnan(drifts(seen)["sharpness"].value)


def test_a_jump_stands_beside_the_steps_that_lead_to_no_seam():
    steps = torch.tensor([1.0, 3.0, 2.0, 9.0, 2.0, 8.0])
    found = seam_jumps({"step": steps, "none": 0 * steps}, [4, 6])
    assert found["4"]["step"] == {"jump": 9.0, "others": 2.0, "ratio": 4.5}
    assert found["6"]["step"]["jump"] == 8
    assert math.isnan(found["4"]["none"]["ratio"])
    assert math.isnan(seam_jumps({"step": torch.ones(1)}, [1])["1"]["step"]["others"])
