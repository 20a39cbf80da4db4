"""The mathematics of the benchmarks: intervals, rank correlations, measures of pictures, the theory of costs."""

import math
import sys

import pytest
import torch
from coherence.demo.shapes import SHAPES, Scene, draw
from coherence.hosting.provision import PACK
from scipy import stats
from torch.nn import functional as F

sys.path.append(str(PACK / "benchmarks"))
import covariate_shift
import guidance
import picture_metrics
import studies
import zs2_design
import zs2_report


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Statistics ----------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_about_students():
    values = normal(60)
    estimate = studies.bootstrap(values)
    half = stats.t.ppf(0.975, 59) * values.std() / math.sqrt(60)
    assert estimate.value == pytest.approx(values.mean().item())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half.item(), rel=0.1)


def test_what_belongs_to_one_unit_is_resampled_together():
    scenes = normal(24)
    copies = scenes[:, None].expand(-1, 50)
    assert studies.bootstrap(copies) == pytest.approx(studies.bootstrap(scenes))


def test_what_was_not_measured_does_not_count():
    values = torch.cat([normal(30), torch.full((5,), torch.nan, dtype=torch.float64)])
    assert studies.bootstrap(values).value == pytest.approx(values[:30].mean().item())


def test_the_bootstrap_is_the_same_every_time_and_leaves_the_random_state():
    state = torch.get_rng_state()
    assert studies.bootstrap(normal(9)) == studies.bootstrap(normal(9))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys(ties):
    x, y = normal(5, 12, seed=1), normal(5, 12, seed=2)
    if ties:
        x, y = x.round(), y.round()
    expected = [stats.spearmanr(*pair).statistic for pair in zip(x, y, strict=True)]
    assert studies.spearman(x, y).tolist() == pytest.approx(expected)


def test_only_two_orders_of_seven_agree_as_much_as_the_order_itself():
    x = torch.arange(7.0)
    assert studies.permutation_p(x, x**3) == pytest.approx(2 / math.factorial(7))


def test_the_exact_p_value_refuses_more_orders_than_can_be_tried():
    with pytest.raises(ValueError, match="expected at most 8"):
        studies.permutation_p(normal(9), normal(9))


def test_a_correlation_that_is_there_is_found_with_its_sign():
    layers = torch.linspace(0, 1, 7, dtype=torch.float64)
    entropy, damage = layers + 0.01 * normal(24, 7), -layers + 0.05 * normal(24, 7, seed=1)
    found = studies.rank_correlation(entropy, damage)
    assert found["rho"] == pytest.approx(-1)
    assert found["by_scenes"][1] < 0
    assert found["by_layers"][0] <= found["by_scenes"][0]
    assert found["p"] < 0.001


def test_other_layers_are_less_certain_than_other_scenes():
    layers = torch.tensor([0.0, 1, 2, 3, 4, 6, 5], dtype=torch.float64)
    damage = torch.arange(7, dtype=torch.float64) + 0.01 * normal(24, 7)
    found = studies.rank_correlation(layers.expand(24, -1), damage)
    widths = [high - low for low, high in (found["by_scenes"], found["by_layers"])]
    assert widths[0] == pytest.approx(0, abs=1e-9)
    assert widths[1] > 0.1


# Pictures ------------------------------------------------------------------------------------------------------------


def scene(shape: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and where its shape is."""
    picture = draw(Scene(shape, "red", "blue", "large", "middle", "centre"))[None]
    return picture, picture[..., 0] > 0.5


def blurred(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    grid = torch.arange(-12, 13)
    window = torch.exp(-0.5 * (grid / sigma) ** 2)
    kernel = (window[:, None] * window / window.sum() ** 2).expand(3, 1, 25, 25)
    return F.conv2d(F.pad(pictures.movedim(-1, 1), (12,) * 4, mode="replicate"), kernel, groups=3).movedim(1, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_edge_is_less_steep_the_more_it_is_blurred(shape):
    picture, where = scene(shape)
    slopes = [picture_metrics.edge_slope(p, where).item() for p in (picture, *(blurred(picture, s) for s in (1, 2, 3)))]
    assert slopes == sorted(slopes, reverse=True)
    assert slopes[3] < 0.5 * slopes[0]


@pytest.mark.parametrize("width", [4, 8])
def test_the_slope_of_a_ramp_is_one_over_its_width(width):
    ramp = ((torch.arange(64) - 32) / width + 0.5).clamp(0, 1)
    picture = ramp[None, None, :, None].expand(1, 64, 64, 3)
    assert picture_metrics.edge_slope(picture, picture[..., 0] > 0.5).item() == pytest.approx(1 / width, rel=0.15)


def test_neither_contrast_nor_length_of_an_edge_changes_its_slope():
    picture, where = scene("square")
    slope = picture_metrics.edge_slope(picture, where)
    assert picture_metrics.edge_slope(0.3 + 0.2 * picture, where).item() == pytest.approx(slope.item(), rel=1e-4)
    wider = F.pad(picture.movedim(-1, 1), (40,) * 4, mode="replicate").movedim(1, -1)
    assert picture_metrics.edge_slope(wider, wider[..., 0] > 0.5).item() == pytest.approx(slope.item(), rel=1e-4)


def test_grain_far_from_the_edge_does_not_count():
    picture, where = scene("circle")
    near = F.max_pool2d(torch.stack([where, ~where], 1).float(), 2 * picture_metrics.NEAR + 7, 1, 7).amin(1) > 0
    grainy = picture + 0.02 * normal(1, 128, 128, 3).float() * ~near[..., None]
    slopes = [picture_metrics.edge_slope(p, where).item() for p in (picture, grainy)]
    assert slopes[1] == pytest.approx(slopes[0], rel=0.01)


def test_overshoot_makes_an_edge_steeper():
    picture, where = scene("circle")
    sharpened = picture + 0.8 * (picture - blurred(picture, 1))
    assert picture_metrics.edge_slope(sharpened, where) > picture_metrics.edge_slope(picture, where)


def test_a_picture_without_a_shape_has_no_edge():
    assert picture_metrics.edge_slope(torch.full((1, 32, 32, 3), 0.5), torch.zeros(1, 32, 32, dtype=torch.bool)) == 0


def test_structure_of_equal_pictures_differs_by_nothing_and_of_blurred_ones_by_more():
    luma = scene("star")[0].mean(-1)
    offs = [picture_metrics.gmsd(luma, blurred(luma[..., None].expand(-1, -1, -1, 3), s)[..., 0]) for s in (1, 2, 4)]
    assert picture_metrics.gmsd(luma, luma) == 0
    assert 0 < offs[0] < offs[1] < offs[2]


def test_brightness_alone_is_no_difference_of_structure():
    luma = scene("star")[0].mean(-1)
    assert picture_metrics.gmsd(luma, luma + 0.1).item() == pytest.approx(0, abs=1e-2)


# Clips ---------------------------------------------------------------------------------------------------------------


def test_change_is_the_last_quarter_less_the_first():
    falling = torch.linspace(1, 0, 16, dtype=torch.float64)
    assert zs2_report.change(falling).item() == pytest.approx(-12 / 15)
    middle = torch.tensor([1.0] * 4 + [9.0] * 8 + [1.0] * 4)
    assert zs2_report.change(torch.stack([middle, -middle])).tolist() == [0, 0]


def test_a_track_that_returns_has_gone_far_and_a_jump_counts_at_every_frame():
    there_and_back = torch.tensor([[[0.0, 0], [3, 4], [6, 8], [3, 4], [0, 0]], [[5.0, 5]] * 5])
    assert zs2_report.travel(there_and_back).tolist() == [10, 0]
    assert zs2_report.step(there_and_back).tolist() == [5, 0]


@pytest.mark.parametrize(
    ("middle", "sign", "words"),
    [
        (0.2, 1, "**holds**"),
        (-0.2, -1, "**holds**"),
        (-0.2, 1, "**the other way round**"),
        (0.01, 1, "not seen"),
        (0.2, 0, "differs"),
    ],
)
def test_a_claim_holds_where_its_interval_lies_on_its_side_of_zero(middle, sign, words):
    values = middle + 0.1 * torch.linspace(-1, 1, 12, dtype=torch.float64)
    assert zs2_report.verdict(values, sign) == words
    missing = torch.full((4,), torch.nan, dtype=torch.float64)
    assert zs2_report.verdict(torch.cat([values, missing]), sign) == words
    assert zs2_report.verdict(torch.cat([values[3:8], missing]), sign) == "too few clips"


def test_a_claims_gain_is_taken_scene_by_scene_where_both_ways_are_drawn():
    claim = next(claim for claim in zs2_design.CLAIMS if claim.measure == "ssim" and claim.other)
    drawn = {claim.way.name: ((7, 0.9), (3, 0.5), (5, 0.7)), claim.other.name: ((3, 0.25), (7, 0.65))}
    records = [
        {"scene": scene, "way": way, "ssim": [value] * 4} for way, clips in drawn.items() for scene, value in clips
    ]
    gain = zs2_report.gain(claim, records)
    assert gain.nan_to_num(-1).tolist() == pytest.approx([0.25, -1, 0.25])


def test_all_that_is_claimed_is_drawn_once():
    names = [way.name for way in zs2_design.WAYS]
    assert len(set(names)) == len(names)
    claimed = {way.name for claim in zs2_design.CLAIMS for way in (claim.way, claim.other) if way}
    assert claimed <= set(names)


# Cost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "before", "cost"),
    [
        ("plain CFG", 0.5, 1),
        ("PAG, a call of its own", 0.5, 1.5),
        ("[A−I]", 0.5, 1.25),
        ("[A−I] not shared", 0.5, 1.5),
        ("[U−I]", 0.25, 1.75),
        ("[U−I] not shared", 0.25, 2),
    ],
)
def test_theory_counts_the_branches_behind_the_shared_prefix(way, before, cost):
    assert guidance.theory(way, before) == cost


def test_attention_is_two_products_of_matrices():
    q, k, v = (1, 8, 100, 64), (1, 8, 50, 64), (1, 8, 50, 32)
    assert guidance.attention_flops(q, k, v) == 2 * 8 * 100 * 50 * 64 + 2 * 8 * 100 * 50 * 32


# Shift of features ---------------------------------------------------------------------------------------------------


def test_moments_are_numpys():
    x = normal(3, 50, 4)
    mean, covariance = covariate_shift.moments(x)
    for each, its_mean, its_covariance in zip(x, mean, covariance, strict=True):
        assert torch.allclose(its_mean, each.mean(0))
        assert torch.allclose(its_covariance, torch.cov(each.T, correction=0))


def test_adding_a_constant_shifts_the_mean_alone_and_scaling_shifts_both():
    x = normal(200, 6) + 3
    before = covariate_shift.moments(x)
    mean, covariance = covariate_shift.shift(before, covariate_shift.moments(x + 0.1 * before[0]))
    assert mean == pytest.approx(0.1)
    assert covariance == pytest.approx(0, abs=1e-12)
    assert covariate_shift.shift(before, covariate_shift.moments(1.1 * x)) == pytest.approx((0.1, 1.1**2 - 1))


def test_what_a_module_does_is_taken_frame_by_frame_and_what_tuning_does_from_all_features():
    seen = normal(2, 4, 9, 5) + 2  # noises, frames, positions, channels
    by_position = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    features = {"a in": seen, "a module": seen - seen.mean(1, keepdim=True), "a layer": seen + by_position}
    found = covariate_shift.compare({"a module": features["a module"], "a layer": seen}, features)
    assert found["module"]["a"] == (0, 0)
    assert found["alone"]["a"] == pytest.approx((1, 0), abs=1e-12)
    assert found["layer"]["a"][0] == pytest.approx(0, abs=1e-12)
    assert found["layer"]["a"][1] > 0.1


# Numbers -------------------------------------------------------------------------------------------------------------


def test_damage_that_no_layer_does_correlates_with_nothing():
    found = studies.rank_correlation(normal(5, 7), torch.zeros(5, 7, dtype=torch.float64))
    assert math.isnan(found["rho"])
    assert math.isnan(found["p"])


def test_damage_in_a_single_scene_leaves_no_interval():
    damage = torch.zeros(5, 7, dtype=torch.float64)
    damage[0] = torch.arange(7)
    found = studies.rank_correlation(torch.arange(7.0).double().expand(5, -1), damage)
    assert found["rho"] == pytest.approx(1)
    assert math.isnan(found["by_scenes"][0])
    assert math.isnan(found["by_layers"][1])


@pytest.mark.parametrize(
    ("value", "text"), [(-0.25, "−0.25"), (0.25, "+0.25"), (-0.001, "0.00"), (math.nan, "–"), (0.0, "0.00")]
)
def test_numbers_have_true_signs_and_zero_has_none(value, text):
    assert studies.number(value, "+.2f") == text
