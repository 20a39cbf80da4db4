"""The report: verdicts, what is read from figures, the page and its Markdown."""

import math
import re
import sys
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from coherence.hosting.provision import PACK
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

sys.path.append(str(PACK / "benchmarks"))
import editing_study
import ei2_study
import ge_adapter_study
import noise_search
import zs2_compare
import zs2_study
from claims import FAILS, FEWEST, HOLDS, UNDECIDED, Claim, Cost, Estimate, verdict
from power import SAME_UNITS
from reporting import writing
from reporting.assembling import Part, Report, assemble, by_claim, shrunk
from reporting.experiments import EXPERIMENTS, PAPERS
from reporting.running import Outcome

# Verdicts ------------------------------------------------------------------------------------------------------------

FIGURES = st.floats(-10, 10, allow_nan=False)
SIGNS = st.sampled_from([-1, 0, 1])


@st.composite
def estimates(draw) -> Estimate:
    low, value, high = sorted(draw(st.tuples(FIGURES, FIGURES, FIGURES)))
    return Estimate(value, low, high)


@given(estimates(), SIGNS, st.floats(0, 5))
def test_a_claim_and_its_mirror_image_get_the_same_verdict(found, sign, tolerance):
    mirrored = Estimate(-found.value, -found.high, -found.low)
    assert verdict(mirrored, -sign, tolerance) == verdict(found, sign, tolerance)


@given(estimates(), st.sampled_from([-1, 1]))
def test_a_claim_holds_where_its_opposite_does_not(found, sign):
    opposite = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}
    assert verdict(found, -sign) == opposite[verdict(found, sign)]


@given(estimates())
def test_an_interval_with_0_in_it_decides_nothing_and_one_without_decides(found):
    assert (verdict(found, 1) == UNDECIDED) == (found.low <= 0 <= found.high)
    if found.low > 0:
        assert verdict(found, 1) == HOLDS


@given(estimates(), st.floats(0, 5), st.floats(0, 5), SIGNS, st.floats(0, 5))
def test_a_wider_interval_never_says_more(found, below, above, sign, tolerance):
    wider = Estimate(found.value, found.low - below, found.high + above)
    units = SAME_UNITS  # fewer that do not differ at all say nothing, and do once they differ
    assert verdict(wider, sign, tolerance, units) in (UNDECIDED, verdict(found, sign, tolerance, units))


@given(estimates(), st.floats(0, 5))
def test_sameness_holds_only_within_its_tolerance_and_fails_only_without(found, tolerance):
    said = verdict(found, 0, tolerance, SAME_UNITS)
    assert (said == HOLDS) == (-tolerance <= found.low and found.high <= tolerance)
    assert (said == FAILS) == (found.low > tolerance or found.high < -tolerance)


@given(estimates(), SIGNS, st.integers(0, FEWEST - 1))
def test_too_few_clips_decide_nothing(found, sign, units):
    assert verdict(found, sign, 1.0, units) == UNDECIDED


def test_what_was_not_measured_decides_nothing():
    assert verdict(Estimate(1.0, math.nan, math.nan), 1) == UNDECIDED


def test_a_clear_difference_never_looks_like_none():
    for low, form, expected in (
        (0.0004, "+.2f", "+0.0006 (+0.0004 to +0.0020)"),
        (0.4, "+.2f", "+0.60 (+0.40 to +2.00)"),
    ):
        claim = Claim("§1", "It is more", "figure", Estimate(1.5 * low, low, 5 * low), form, 8, 1)
        assert claim.measured == expected


def test_a_ratio_is_judged_by_its_distance_from_one():
    claim = Claim("§1", "It is cheaper", "ratio", Estimate(0.8, 0.7, 0.9), ".2f", 8, -1, beside=1.0)
    assert claim.verdict == HOLDS
    assert claim.expected == "< 1"
    assert claim.measured == "0.80 (0.70 to 0.90)"


# Reading figures -----------------------------------------------------------------------------------------------------

CLIPS = 8
EDITS = ["nothing", "lowest 25%", "lowest 50%", "lowest 100%", "highest 50%", "key_value, lowest 50%"]
EDITS += ["value, lowest 50%", "cross_map"]


def near(value: float, clip: int) -> float:
    return value + 0.001 * (clip % 3)


def edited(kept: dict[str, float]) -> list[dict]:
    """Records of the editing study in which the shape keeps its place as told, and ways differ in nothing else."""
    return [
        {"ways": {way: {"fidelity": 1.0, "consistency": 0.9, "iou": near(kept.get(way, 0.4), c)} for way in EDITS}}
        for c in range(CLIPS)
    ]


def tuned(overlap: dict[str, float]) -> list[dict]:
    """Records of EI²'s study in which shapes overlap the ideal's as told."""
    measures = dict.fromkeys(("obeys", "change", "track", "ssim", "warped", "steady"), 0.5)
    ways = ("untuned", "untuned, fine-coarse", "Tune-A-Video", "STAM", "STAM, cross_map")
    changes = ("colour", "shape", "background")
    return [
        {"ways": {way: dict.fromkeys(changes, measures | {"iou": near(overlap.get(way, 0.4), c)}) for way in ways}}
        for c in range(CLIPS)
    ]


def adapted(ours: float) -> list[dict]:
    """Records of GE-Adapter's study in which the adapter gives this consistency instead of 0.9."""
    ways = {"without": 0.9, "adapter, on 0.9 to 1": ours, "adapter, on 0.5 to 1": ours}
    inverted = {
        f"{kernel} {steps}": {"psnr": 20.0, "consistency": 0.9} for kernel in (0, 3, 5, 9) for steps in (4, 8, 16)
    }
    records = []
    for clip in range(CLIPS):
        figures = {way: {"fidelity": 0.8, "consistency": near(x, clip)} for way, x in ways.items()}
        records.append({"steps": 40, "sampled": figures, "edited": figures, "inverted": inverted})
    return records


def compared(ssim: float) -> list[dict]:
    """Records of ZS² beside plain sampling, whose frames are as alike as 0.9."""
    ways = dict.fromkeys(zs2_compare.WAYS, 0.9) | {zs2_compare.OURS: ssim}
    return [
        {"kind": kind, "ways": {way: {"ssim": near(x, c * (x == ssim)), "fidelity": 1.0} for way, x in ways.items()}}
        for kind in zs2_compare.SAYS
        for c in range(CLIPS)
    ]


def said(claims: list[Claim], words: str) -> str:
    (claim,) = (claim for claim in claims if words in claim.text)
    return claim.verdict


@pytest.mark.parametrize(
    ("read", "results", "words"),
    [
        (editing_study.claims, [edited({"lowest 50%": iou}) for iou in (0.6, 0.2)], "low entropy keep the structure"),
        (ei2_study.claims, [tuned({"STAM, cross_map": iou}) for iou in (0.6, 0.2)], "preserves structure better"),
        (zs2_compare.claims, [compared(ssim) for ssim in (0.99, 0.5)], "coherent clips"),
    ],
)
def test_a_claim_is_read_with_the_sign_of_its_effect(read, results, words):
    true, false = results
    assert said(read(true), words) == HOLDS
    assert said(read(false), words) == FAILS


def test_an_adapters_gain_is_read_for_sampled_and_edited_clips():
    for ours, expected in ((0.99, HOLDS), (0.5, FAILS), (0.9, UNDECIDED)):
        claims = ge_adapter_study.claims(adapted(ours))
        verdicts = [claim.verdict for claim in claims if "more consistent" in claim.text]
        assert verdicts == [expected] * 2
    assert not any("tokens" in claim.text for claim in claims), "a variant that was not trained says nothing"


def test_ways_that_were_not_drawn_say_nothing():
    way = "{}, momentum μ=0.95"
    steady = {"i.i.d.": 0.8, "dependency λ=0.01": 0.95}
    records = [
        {"way": way.format(noise), "scene": c, "kind": "any"}
        | {"ssim": [near(x, c)] * 3, "centre": [[0.0, 0.0]] * 4}
        | dict.fromkeys(("obeys", "form", "grain"), [1.0] * 4)
        for noise, x in steady.items()
        for c in range(CLIPS)
    ]
    (claim,) = zs2_study.claims(records)
    assert "steadier than i.i.d." in claim.text
    assert claim.where == "§3"
    assert claim.verdict == HOLDS


def test_a_cost_is_the_median_of_its_rounds():
    (cost,) = noise_search.costs({noise_search.PLAIN: [1.0] * 6, "search in all frames": [2.0] * 5 + [50.0]})
    assert cost.measured.startswith("2.00 (2.00 to")


# Page and Markdown ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed, and collects texts and what is linked."""

    VOID = ("meta", "img", "br", "line", "rect", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report() -> Report:
    """Sample figures of every paper, costs, an experiment that failed, and a picture."""
    by = {each.name: each for each in EXPERIMENTS}
    findings = {
        "zs2_compare": zs2_compare.claims(compared(0.99)),
        "editing_study": editing_study.claims(edited({"lowest 50%": 0.6})),
        "ge_adapter_study": ge_adapter_study.claims(adapted(0.5)),
        "ei2_study": ei2_study.claims(tuned({})),
        "noise_search": [Cost("noise <search>", "1.10", "1", "others 2")],
    }
    parts = [Part(by[name], each, [], "", 10.0, 8.0) for name, each in findings.items()]
    parts.append(Part(by["covariate_shift"], [], [], "it failed: <layer> & more", 3.0, 2.0))
    return Report("quick", parts, {"ComfyUI": "0.30.0", "PyTorch": torch.__version__})


def test_the_page_shows_every_claim_verdict_and_reason_and_needs_nothing_else(report):
    made = writing.html(report)
    shown = Page(made)
    for claim in report.claims():
        assert claim.text in shown.text
        assert claim.measured in shown.text
    for words in ("noise <search>", "it failed: <layer> & more", "0.30.0", "Corrected for their number"):
        assert words in shown.text
    assert all(link.startswith(("#", "data:")) for link in shown.links)
    assert not re.search(r"url\(|@import|<script", made)


def test_the_markdown_shows_the_same_with_its_pictures_beside_it(report, tmp_path):
    writing.write(report, tmp_path)
    shown = (tmp_path / "REPORT.md").read_text("utf-8")
    for claim in report.claims():
        assert claim.text in shown
        assert claim.measured in shown
    assert "it failed: <layer> & more" in shown
    pictures = re.findall(r"!\[[^]]*]\((.*?)\)", shown)
    assert {f"report/claims_{paper}.png" for paper in PAPERS} - set(pictures) <= set()
    for name in pictures:
        assert Image.open(tmp_path / name).width > 300
    lengths = [len(line.split(" | ")) for line in shown.splitlines() if line.startswith("| ")]
    assert min(lengths) >= 2


def test_pictures_of_an_earlier_report_go(report, tmp_path):
    old = tmp_path / "report" / "claims_gone.png"
    old.parent.mkdir()
    old.touch()
    writing.write(report, tmp_path)
    assert not old.exists()


def test_figures_of_one_claim_stand_together_in_the_order_of_the_first():
    def claim(words: str, is_papers: bool = True) -> Claim:
        return Claim("§1", words, "figure", Estimate(1, 0, 2), ".1f", 8, 1, is_papers=is_papers)

    claims = [claim("b"), claim("a"), claim("aside", False), claim("b")]
    assert [(first.text, len(all_)) for first, all_ in by_claim(claims)] == [("b", 2), ("a", 1)]


def test_figures_that_cannot_be_read_are_a_reason_too(tmp_path):
    experiment = EXPERIMENTS[-1]
    out = tmp_path / experiment.name
    out.mkdir()
    (out / experiment.results).write_text("{")
    (part,) = assemble([experiment], [Outcome(experiment.name, "", 1.0, 1.0, [])], tmp_path, "quick", {}).parts
    assert "could not be read" in part.reason
    assert str(tmp_path) not in part.reason


def test_a_picture_is_made_small_enough_to_commit(tmp_path):
    noise = torch.randint(256, (400, 2400, 3), dtype=torch.uint8).numpy()
    chart = tmp_path / "chart.png"
    Image.fromarray(noise).save(chart)
    data = shrunk(chart, is_chart=True)
    assert Image.open(BytesIO(data)).size == (1200, 200)
    assert len(data) < chart.stat().st_size / 5
