"""What an effect worth having takes, what is left of many verdicts, the page's first table, and who may publish it."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from coherence.hosting.provision import PACK
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

sys.path.append(str(PACK / "benchmarks"))
import power
import report as script
from claims import FAILS, FEWEST, HOLDS, NO_GAIN, UNDECIDED, Claim, Cost, Estimate, Use, verdict
from reporting import top, writing
from reporting.assembling import Part, Report, require_clean
from reporting.experiment import BUDGETS
from reporting.experiments import EXPERIMENTS
from reporting.gathering import as_before, grown
from reporting.running import Outcome


def claim(value: float, reach: float, units: int = 20, **more) -> Claim:
    found = Estimate(value, value - reach, value + reach)
    how = {"sign": 1, "worth": 0.1} | more
    return Claim("§1", "It is more", "figure", found, "+.3f", units, **how)


# Power ---------------------------------------------------------------------------------------------------------------


def decides(effect: float, worth: float, units: int, studies: int = 4000) -> float:
    """The share of studies of units with deviation 1 whose interval leaves out 0, or the effect worth having."""
    drawn = np.random.default_rng(units).normal(effect, 1, (studies, units))
    reach = stats.t.ppf(0.975, units - 1) * drawn.std(1, ddof=1) / math.sqrt(units)
    mean = drawn.mean(1)
    return float(((mean - reach > 0) | (mean + reach < worth)).mean())


@pytest.mark.parametrize("worth", [1.5, 0.6, 0.25])
def test_as_many_units_as_are_needed_decide_in_four_of_five_studies_whether_the_effect_is_there_or_not(worth):
    units = power.needed(worth)
    for effect in (0.0, worth):
        assert decides(effect, worth, units) == pytest.approx(0.8, abs=0.06)
    assert decides(worth, worth, max(units // 2, 2)) < 0.7


def test_sameness_takes_more_units_than_a_difference():
    assert power.needed(0.5, True) > power.needed(0.5)


def test_no_number_is_told_that_nobody_could_gather():
    assert power.needed(1e-4) == power.needed(math.nan) == 0


@given(st.floats(0.01, 5), st.integers(FEWEST, 200))
def test_the_deviation_is_the_one_that_gives_the_interval(spread, units):
    reach = stats.t.ppf(0.975, units - 1) * spread / math.sqrt(units)
    assert power.deviation(1 - reach, 1 + reach, units) == pytest.approx(spread)


def test_what_is_undecided_says_how_many_clips_would_decide_it():
    few = claim(0.0, 0.2)
    assert few.verdict == UNDECIDED
    assert few.needs > few.units
    assert few.basis == "20 clips; about 150 would decide"
    assert few.needs == pytest.approx(150, abs=5)
    assert "no more" in claim(0.0, 0.2, unit="layers").basis
    assert claim(0.09, 0.092, 400).needs > 400, "enough for an effect worth having, but this one is smaller"
    assert claim(0.5, 0.1).basis == "20 clips"


@given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(FEWEST, 100), st.sampled_from([-1, 1]))
def test_no_gain_is_said_only_where_the_interval_leaves_out_what_is_worth_having_but_not_0(value, reach, units, sign):
    found = Estimate(value, value - reach, value + reach)
    without, with_worth = (verdict(found, sign, units=units, worth=worth) for worth in (None, 0.1))
    farthest = sign * value + reach
    assert (with_worth == NO_GAIN) == (without == UNDECIDED and farthest < 0.1)
    assert with_worth == without or without == UNDECIDED


def test_units_that_do_not_differ_at_all_must_be_many_to_show_no_gain():
    few, many = (8, power.SAME_UNITS)
    assert [claim(0.0, 0.0, units).verdict for units in (few, many)] == [UNDECIDED, NO_GAIN]
    assert [claim(0.0, 0.0, units, sign=0, tolerance=0.1).verdict for units in (few, many)] == [UNDECIDED, HOLDS]
    assert claim(0.0, 0.0, few).p == 1
    assert claim(0.0, 0.0, few).basis == "8 clips: the same in all clips; 24 would decide"


# Many claims ---------------------------------------------------------------------------------------------------------


@given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(FEWEST, 60), st.sampled_from([-1, 0, 1]))
def test_p_says_the_same_as_the_interval(value, reach, units, sign):
    found = claim(value, reach, units, sign=sign, tolerance=0.1)
    assume(abs(found.p - power.LEVEL) > 1e-9)
    assert (found.p < power.LEVEL) == (found.verdict != UNDECIDED)


@given(st.lists(st.floats(0, 1), max_size=30))
@settings(max_examples=50)
def test_holm_keeps_the_order_never_lowers_p_and_takes_no_more_than_bonferroni(ps):
    found = power.holm(ps)
    for p, corrected in zip(ps, found, strict=True):
        assert p <= corrected <= min(1.0, len(ps) * p + 1e-12)
    assert [c for _, c in sorted(zip(ps, found, strict=True))] == sorted(found)


def test_holm_is_as_in_his_paper():
    assert power.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


# The page's top ------------------------------------------------------------------------------------------------------

BY_NAME = {each.name: each for each in EXPERIMENTS}


def reported(*findings: Claim | Cost, name: str = "zs2_compare") -> Report:
    return Report("quick", [Part(BY_NAME[name], [*findings], [], "", 1.0, 1.0)], {"ComfyUI-Coherence": "1, commit abc"})


def test_the_page_opens_with_the_commit_and_what_to_use_from_the_figures():
    use = Use("a steady clip", "some node", "kl 0.02", "Step with momentum")
    cost = Cost("Step with momentum attention, 8 frames, of one with self-attention", "1.02 (1.01 to 1.03)")
    made = reported(claim(0.5, 0.1, use=use), claim(-0.5, 0.1, use=replace(use, technique="another")), cost)
    text, page = writing.markdown(made), writing.html(made)
    assert "commit abc" in text.splitlines()[0]
    assert "commit abc" in page.partition("</h1>")[0]
    for shown in (text, page):
        assert shown.index("some node") < shown.index("another") < shown.index("Each claim is one that")
        assert "+0.500 (+0.400 to +0.600)" in shown
        assert "1.02 (1.01 to 1.03) of one with self-attention" in shown
    assert [row.verdict for row in top.rows_of(made.claims(), made.costs)] == [HOLDS, FAILS]


def test_the_top_shows_words_as_they_are_and_says_where_there_is_nothing_to_advise():
    made = reported(claim(0.0, 0.1, worth=0.5, use=Use("an <aim>", "node", "kl 0.02")))
    text, page = top.markdown(top.rows_of(made.claims(), ())), writing.html(made)
    assert "an <aim>" in text
    assert "an &lt;aim&gt;" in page
    assert "no gain" in text
    assert 'class="chip no-gain">no gain' in page
    assert "Nothing was measured" in top.markdown([])
    assert "Nothing was measured" in writing.html(reported(claim(0.5, 0.1)))


def test_a_figure_that_is_none_of_a_papers_claims_gets_its_advice_by_its_interval():
    use = Use("aim", "node", "")
    rows = top.rows_of([claim(value, 0.2, is_papers=False, use=use) for value in (0.5, 0.0, -0.5)], [])
    assert {row.effect[:6]: row.verdict for row in rows} == {"+0.500": HOLDS, "0.000 ": UNDECIDED, "−0.500": FAILS}


def test_what_holds_by_less_than_is_worth_having_is_not_advised():
    small = claim(0.05, 0.01, use=Use("aim", "node", ""))
    assert small.verdict == HOLDS
    assert small.basis == "20 clips; clear, but less than is worth having"
    assert [row.verdict for row in top.rows_of([small], [])] == [NO_GAIN]
    assert not claim(0.05, 0.06, worth=0.01).is_small


def test_among_many_claims_only_what_is_clear_enough_stands():
    weak, strong = claim(0.1, 0.095), claim(0.5, 0.1)
    assert weak.verdict == strong.verdict == HOLDS
    made = reported(weak, strong, *(claim(0.01 * n, 0.3) for n in range(10)))
    assert made.standing() == [strong]
    assert "1 of the 2 that are decided still are" in writing.markdown(made)


# Gathering -----------------------------------------------------------------------------------------------------------


def test_gathering_takes_as_many_clips_as_decide_and_at_most_twice_as_many_at_once():
    near, far, hopeless = claim(0.0, 0.12, 12), claim(0.0, 0.3, 12), claim(0.0, 50.0, 12)
    count = BY_NAME["zs2_compare"].count("quick")
    assert count == 6
    for findings, expected in (([far], 12), ([], 6), ([hopeless], 12), ([near], 12)):
        (experiment,) = grown(reported(*findings))
        assert experiment.count("quick") == expected
        assert experiment.limit("quick") == pytest.approx(BY_NAME["zs2_compare"].limit("quick") * expected / 6)
        assert experiment.name == "zs2_compare"


def test_gathering_ends_where_all_is_decided_or_would_take_too_many():
    experiment = BY_NAME["zs2_compare"].grown("quick", 24)
    for findings, expected in (([claim(0.5, 0.1)], 24), ([claim(0.0, 50.0)], 24), ([claim(0.0, 0.3, 24)], 48)):
        part = Part(experiment, findings, [], "", 1.0, 1.0)
        assert grown(Report("quick", [part], {}))[0].count("quick") == expected


def test_a_resumed_report_goes_on_with_as_many_as_it_had(tmp_path):
    experiment = BY_NAME["zs2_compare"]
    assert as_before(experiment, tmp_path, "quick") == experiment
    (out := tmp_path / experiment.name).mkdir()
    arguments = experiment.grown("quick", 12).arguments("quick", tmp_path, out)
    done = Outcome(experiment.name, "", 1.0, 1.0, arguments)
    (out / f"{experiment.name}.done.json").write_text(json.dumps(asdict(done)))
    assert as_before(experiment, tmp_path, "quick").count("quick") == 12


def test_every_study_that_can_gather_says_how_many_it_has_in_either_budget():
    for each, budget in ((each, budget) for each in EXPERIMENTS for budget in BUDGETS):
        if each.counted_by and each.limit(budget):
            assert each.count(budget) > 0
            assert each.grown(budget, 77).arguments(budget, PACK, PACK).count("77") == 1


# Publishing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    git("init", "-q")
    (tmp_path / "study.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "First")
    return tmp_path


def test_a_dirty_tree_is_not_published(repository, tmp_path_factory):
    require_clean(repository)
    (repository / "study.py").write_text("2")
    with pytest.raises(SystemExit, match=r"1 files differ from it: study\.py"):
        require_clean(repository)
    (repository / "study.py").write_text("1")
    (repository / "new.py").touch()
    with pytest.raises(SystemExit, match=r"new\.py"):
        require_clean(repository)
    with pytest.raises(SystemExit, match="needs the pack's Git repository"):
        require_clean(tmp_path_factory.mktemp("no_repository"))


def test_the_report_asks_for_a_clean_tree_before_it_measures_anything(monkeypatch, tmp_path):
    def refuse():
        raise SystemExit("dirty")

    monkeypatch.setattr(script, "require_clean", refuse)
    monkeypatch.setattr(script, "Runner", None)
    monkeypatch.setattr(
        sys, "argv", ["report", "--comfyui", str(tmp_path), "--output", str(tmp_path / "o"), "--publish"]
    )
    with pytest.raises(SystemExit, match="dirty"):
        script.main()
    assert not (tmp_path / "o").exists()
