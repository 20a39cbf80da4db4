"""The node TemporalConsistency: its report holds what the metrics say, its chart shows every line."""

import json

import pytest
import torch
from coherence.demo.clips import render_clip
from coherence.metrics.consistency import agreement, means, temporal_consistency
from coherence.metrics.look import PER, drifts, look
from coherence.nodes.charts import COLOURS
from coherence.nodes.checks import InputError
from coherence.nodes.consistency import TemporalConsistency
from coherence.nodes.consistency_chart import PANELS
from matplotlib.colors import to_rgb
from torch import Tensor

SOURCE = render_clip("circle", "red", "white", frames=5, seed=1, size=64).frames
EDIT = render_clip("square", "blue", "white", frames=5, seed=1, size=64).frames


def pixels_of(colour: str, chart: Tensor) -> int:
    return int(((chart - torch.tensor(to_rgb(colour))).abs().amax(-1) < 0.02).sum())


def test_the_report_of_a_clip_alone_holds_its_figures() -> None:
    text, _ = TemporalConsistency.execute(EDIT).args
    report = json.loads(text)
    figures = temporal_consistency(EDIT)
    assert {name: report[name] for name in ("frames", "height", "width")} == {"frames": 5, "height": 64, "width": 64}
    assert set(report) == {"frames", "height", "width", "clip"}
    assert report["clip"]["mean"] == pytest.approx(means(figures))
    for name in PANELS:
        assert report["clip"][name] == pytest.approx(getattr(figures, name).tolist())


def test_the_report_with_a_reference_compares_the_two() -> None:
    report = json.loads(TemporalConsistency.execute(EDIT, SOURCE).args[0])
    assert report["clip"]["mean"] == pytest.approx(means(temporal_consistency(EDIT)))
    assert report["reference"]["mean"] == pytest.approx(means(temporal_consistency(SOURCE)))
    assert report["against_reference"]["mean"] == pytest.approx(means(agreement(EDIT, SOURCE)))
    assert len(report["against_reference"]["ssim"]) == 5


def test_the_chart_shows_a_line_for_each_clip() -> None:
    (_, alone), (_, both) = (TemporalConsistency.execute(EDIT, *more).args for more in ((), (SOURCE,)))
    assert alone.shape == both.shape == (1, 768, 1440, 3)
    assert pixels_of(COLOURS[0], alone) > 500
    assert pixels_of(COLOURS[1], alone) == pixels_of(COLOURS[2], alone) == 0
    assert min(pixels_of(colour, both) for colour in COLOURS[:3]) > 300


def test_what_could_not_be_measured_is_null_and_leaves_the_chart_readable() -> None:
    dark = torch.linspace(0, 0.5, 32)[:, None, None].expand(1, 32, 32, 3)
    text, chart = TemporalConsistency.execute(torch.cat([dark, dark + 0.5])).args
    assert json.loads(text)["clip"]["warped_error"] == [None]
    assert json.loads(text)["clip"]["mean"]["warped_error"] is None
    assert chart.isfinite().all()


def test_transparency_is_left_out() -> None:
    with_alpha = torch.cat([EDIT, torch.rand(5, 64, 64, 1, generator=torch.Generator().manual_seed(0))], dim=-1)
    assert TemporalConsistency.execute(with_alpha).args[0] == TemporalConsistency.execute(EDIT).args[0]


def test_a_reference_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="reference has shape"):
        TemporalConsistency.execute(EDIT, SOURCE[:3])


def test_the_report_tells_the_drift_of_both_clips_with_its_interval() -> None:
    brighter = EDIT * torch.linspace(0.5, 0.9, 5)[:, None, None, None]
    report = json.loads(TemporalConsistency.execute(brighter, SOURCE).args[0])
    for name, clip in (("clip", brighter), ("reference", SOURCE)):
        for measure, (value, *interval) in drifts(look(clip)).items():
            told = report[name]["drift"][measure]
            assert told["per_100_frames"] == pytest.approx(value)
            assert told["interval"] == pytest.approx(interval)
    lightness = report["clip"]["look"]["lightness"]
    rise = PER * (lightness[-1] - lightness[0]) / 4
    assert report["clip"]["drift"]["lightness"]["per_100_frames"] == pytest.approx(rise, rel=0.2)


@pytest.mark.slow
def test_the_jump_at_a_seam_stands_beside_the_other_steps() -> None:
    joined = torch.cat([SOURCE, EDIT])
    text, chart = TemporalConsistency.execute(joined, seams="5").args
    report = json.loads(text)["clip"]
    jump = report["seams"]["5"]["flicker"]
    assert jump["jump"] == pytest.approx(report["flicker"][4])
    assert jump["ratio"] > 2
    plain_text, plain_chart = TemporalConsistency.execute(joined).args
    del report["seams"]
    assert json.loads(plain_text)["clip"] == report
    assert not torch.equal(plain_chart, chart)


@pytest.mark.parametrize("seams", ["5", "0", "-1", "2, x", "1.5"])
def test_seams_that_are_no_frames_of_the_clip_are_refused(seams: str) -> None:
    with pytest.raises(InputError, match=r"^seams holds .* expected frame numbers from 1 to 4"):
        TemporalConsistency.execute(EDIT, seams=seams)
