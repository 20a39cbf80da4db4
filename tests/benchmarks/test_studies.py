"""The mathematics of the benchmarks: intervals, rank correlations, measures of pictures, the theory of costs; and what
studies share: what they keep, their tables, charts and contact sheets."""

import math
import sys

import numpy as np
import pytest
import torch
from coherence.demo.model import load_model
from coherence.demo.shapes import SHAPES, Scene, draw
from coherence.hosting.provision import PACK
from coherence.metrics.ranks import spearman
from scipy import stats
from torch.nn import functional as F

sys.path.append(str(PACK / "benchmarks"))
import claims
import covariate_shift
import editing_memory
import figures
import guidance
import harness
import picture_metrics
import zs2_design
import zs2_study


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [6, 12])
def test_intervals_cover_what_they_say_with_few_units_too(units):
    found = [claims.estimate(normal(units, seed=seed)) for seed in range(300)]
    assert 0.92 < sum(each.low <= 0 <= each.high for each in found) / len(found) < 0.98


def test_the_interval_of_a_mean_of_many_is_about_students():
    values = normal(60)
    found = claims.estimate(values)
    half = stats.t.ppf(0.975, 59) * values.std() / math.sqrt(60)
    assert found.value == pytest.approx(values.mean().item())
    assert (found.high - found.low) / 2 == pytest.approx(half.item(), rel=0.1)


def test_an_interval_reaches_farther_to_the_side_of_the_tail():
    found = claims.estimate(normal(30).exp())
    assert found.high - found.value > 1.2 * (found.value - found.low)


def test_what_belongs_to_one_unit_is_resampled_together_and_what_was_not_measured_does_not_count():
    scenes = normal(24)
    copies = scenes[:, None].expand(-1, 50)
    missing = torch.full((5,), torch.nan, dtype=torch.float64)
    assert claims.estimate(copies) == pytest.approx(claims.estimate(scenes))
    assert claims.estimate(torch.cat([scenes, missing])) == claims.estimate(scenes)


def test_units_that_agree_have_an_interval_of_no_width_and_one_unit_or_none_has_no_interval():
    assert claims.estimate(torch.full((8,), 0.5)) == (0.5, 0.5, 0.5)
    for values in (torch.ones(1), torch.ones(0)):
        assert math.isnan(claims.estimate(values).low)
        assert math.isnan(claims.estimate(values).high)


def test_one_slow_round_does_not_move_the_median_and_reaches_into_its_interval():
    found = claims.estimate(torch.tensor([2.0] * 5 + [50.0]), np.median)
    assert (found.value, found.low) == (2, 2)
    assert found.high > 2


def test_the_bootstrap_is_the_same_every_time_and_leaves_the_random_states():
    states = torch.get_rng_state(), np.random.get_state()[1]
    assert claims.estimate(normal(9)) == claims.estimate(normal(9))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys(ties):
    x, y = normal(5, 12, seed=1).numpy(), normal(5, 12, seed=2).numpy()
    if ties:
        x, y = x.round(), y.round()
    expected = [stats.spearmanr(*pair).statistic for pair in zip(x, y, strict=True)]
    assert spearman(x, y).tolist() == pytest.approx(expected)


def test_only_two_orders_of_seven_agree_as_much_as_the_order_itself():
    x = torch.arange(7.0).expand(6, -1)
    assert claims.rank_correlation(x, x**3)["p"] == pytest.approx(2 / math.factorial(7))


def test_a_correlation_that_is_there_is_found_with_its_sign():
    layers = torch.linspace(0, 1, 7, dtype=torch.float64)
    entropy, damage = layers + 0.01 * normal(24, 7), -layers + 0.05 * normal(24, 7, seed=1)
    found = claims.rank_correlation(entropy, damage)
    assert found["rho"] == pytest.approx(-1)
    assert found["by_scenes"][1] < 0
    assert found["by_layers"][0] <= found["by_scenes"][0]
    assert found["p"] < 0.001


def test_other_layers_are_less_certain_than_other_scenes():
    layers = torch.tensor([0.0, 1, 2, 3, 4, 6, 5], dtype=torch.float64)
    damage = torch.arange(7, dtype=torch.float64) + 0.01 * normal(24, 7)
    found = claims.rank_correlation(layers.expand(24, -1), damage)
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
    assert zs2_study.change(falling).item() == pytest.approx(-12 / 15)
    middle = torch.tensor([1.0] * 4 + [9.0] * 8 + [1.0] * 4)
    assert zs2_study.change(torch.stack([middle, -middle])).tolist() == [0, 0]


def test_a_track_that_returns_has_gone_far_and_a_jump_counts_at_every_frame():
    there_and_back = torch.tensor([[[0.0, 0], [3, 4], [6, 8], [3, 4], [0, 0]], [[5.0, 5]] * 5])
    assert zs2_study.travel(there_and_back).tolist() == [10, 0]
    assert zs2_study.step(there_and_back).tolist() == [5, 0]


def test_a_claims_gain_is_taken_scene_by_scene_where_both_ways_are_drawn():
    asked = next(each for each in zs2_design.ASKED if "steadier than i.i.d." in each[1])
    _, text, _, way, other, _ = asked
    drawn = {way.name: ((7, 0.9), (3, 0.5), (5, 0.7)), other.name: ((3, 0.25), (7, 0.65))}
    records = [
        {"scene": scene, "way": name, "ssim": [value] * 4} for name, clips in drawn.items() for scene, value in clips
    ]
    assert zs2_study.gain(asked, records).nan_to_num(-1).tolist() == pytest.approx([0.25, -1, 0.25])
    assert next(each for each in zs2_study.claims(records) if each.text == text).units == 2


def test_all_that_is_claimed_is_drawn_once():
    names = [way.name for way in zs2_design.WAYS]
    assert len(set(names)) == len(names)
    assert {way.name for asked in zs2_design.ASKED for way in asked[3:5] if way} <= set(names)


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
    found = claims.rank_correlation(normal(5, 7), torch.zeros(5, 7, dtype=torch.float64))
    assert math.isnan(found["rho"])
    assert math.isnan(found["p"])


def test_damage_in_a_single_scene_decides_nothing():
    damage = torch.zeros(6, 7, dtype=torch.float64)
    damage[0] = torch.arange(7)
    found = claims.rank_correlation(torch.arange(7.0).double().expand(6, -1), damage)
    assert found["rho"] == pytest.approx(1)
    assert found["by_scenes"][0] <= 0
    assert found["by_layers"][0] <= 0


@pytest.mark.parametrize(
    ("value", "text"), [(-0.25, "−0.25"), (0.25, "+0.25"), (-0.001, "0.00"), (math.nan, "–"), (0.0, "0.00")]
)
def test_numbers_have_true_signs_and_zero_has_none(value, text):
    assert claims.number(value, "+.2f") == text


# What is kept and shown ----------------------------------------------------------------------------------------------


def test_a_study_goes_on_where_it_was_and_measures_a_record_that_was_cut_off_again(tmp_path):
    measured: list[int] = []

    def wanted(count: int):
        return ((str(n), lambda n=n: measured.append(n) or {"value": n}) for n in range(count))

    first = list(harness.Records(tmp_path, {"steps": 2}).take(wanted(3), math.inf))
    path = tmp_path / harness.RECORDS
    path.write_text(path.read_text()[:-3])
    assert list(harness.Records(tmp_path, {"steps": 2}).take(wanted(3), math.inf)) == first
    assert measured == [0, 1, 2, 2]
    with pytest.raises(SystemExit, match="other settings"):
        harness.Records(tmp_path, {"steps": 3})


def test_without_time_a_study_begins_once_and_then_reports_what_is_there(tmp_path):
    records = harness.Records(tmp_path, {})
    assert [each["key"] for each in records.take([("a", dict), ("b", dict)], 0)] == ["a"]
    assert [each["key"] for each in records.take([("b", dict), ("c", dict)], 0)] == ["b"]
    assert [each["key"] for each in records.take([("c", dict), ("a", dict), ("d", dict), ("b", dict)], 0)] == [
        "c",
        "a",
        "b",
    ]


def test_frames_are_drawn_once_and_read_as_their_file_keeps_them(tmp_path):
    frames, path = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "clip" / "a.png"
    drawn = harness.strip(path, lambda: frames)
    assert torch.equal(drawn, (frames * 255).round() / 255)
    assert torch.equal(harness.strip(path, lambda: 1 - frames), drawn)
    assert [each.name for each in path.parent.iterdir()] == ["a.png"]


def test_jobs_take_turns_and_begin_with_another_one_each_round():
    order: list[str] = []
    times = harness.take_turns({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert "".join(order) == "abcbcacab"
    assert [len(taken) for taken in times.values()] == [2, 2, 2]


def test_the_peak_counts_what_lives_at_once():
    def run():
        first = torch.ones(256, 1024)  # 1 MiB
        second = first + 1
        del first
        return second[:10] + second.sum()

    assert harness.peak_of(run) == pytest.approx(2, abs=0.1)


def test_a_table_marks_clear_differences_and_has_as_many_cells_in_every_row():
    values = {"more": torch.linspace(0.9, 1.1, 8), "same": torch.linspace(-1, 1, 8)}
    made = figures.means(values, {"x": ("figure", ".2f")}, lambda way, _: values[way], gains=True).splitlines()
    assert made[2].startswith("| more | **+1.00 (")
    assert "**" not in made[3]
    assert len({line.count("|") for line in made}) == 1


def test_a_contact_sheet_has_a_row_for_every_name_and_a_place_for_every_picture():
    red, blue = (torch.eye(3)[place].expand(8, 8, 3) for place in (0, 2))
    made = figures.sheet([("one", {"a": [red, blue], "b": [blue]}), ("two\nlines", {"a": [red]})], side=20)
    count = {colour: n // 400 for n, colour in made.getcolors(made.width * made.height)}
    assert (count[255, 0, 0], count[0, 0, 255]) == (2, 2)


def test_a_chart_draws_every_series_for_every_way():
    values = lambda way, name: torch.linspace(0, len(way), 6)  # noqa: E731
    figure = figures.rows_chart("title", "subtitle", ["x", "yy"], {"m": ("M", ".1f")}, {"one": values, "two": values})
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [point.get_xdata()[0] for point in points] == pytest.approx([0.5, 1, 0.5, 1])


@pytest.mark.parametrize(("replace", "limit"), [("map", 1.25), ("blend", 1.4)])
def test_an_edit_needs_little_more_memory_than_plain_sampling_of_both_clips(replace, limit):
    """No map and no step is stored; ``blend`` evaluates the source once more, beside."""
    model = load_model()
    plain, edit = harness.sampling(model, 8, 64), editing_memory.editing(model, 4, 64, replace)
    with torch.inference_mode():
        plain()  # loads the model
        assert harness.peak_of(edit) < limit * harness.peak_of(plain)
