"""What a report runs: arguments, time limits, what is kept; and the whole of it, as a user runs it."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from coherence.hosting.provision import PACK

sys.path.append(str(PACK / "benchmarks"))
from claims import Claim, Estimate
from report import LANES, MINUTES
from reporting.assembling import assemble
from reporting.experiment import BUDGETS, COSTS, Experiment
from reporting.experiments import EXPERIMENTS, PAPERS
from reporting.running import SHARE, Outcome, Runner, of_figures

# Experiments ---------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Raised in the place of a script's work."""


RUN = [(each, budget) for each in EXPERIMENTS for budget in BUDGETS if each.limit(budget)]


@pytest.mark.parametrize(("experiment", "budget"), RUN, ids=[f"{each.name}-{budget}" for each, budget in RUN])
def test_every_script_takes_the_arguments_of_its_experiment(experiment, budget, monkeypatch, tmp_path):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args, **kwargs):
        raise Parsed(parse(*args, **kwargs))

    module = importlib.import_module(experiment.script)
    arguments = experiment.arguments(budget, tmp_path, tmp_path)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [experiment.script, *arguments])
    with pytest.raises(Parsed):
        module.main()


def test_experiments_have_names_of_their_own_and_belong_somewhere():
    names = [each.name for each in EXPERIMENTS]
    assert len(set(names)) == len(names)
    assert {each.paper for each in EXPERIMENTS} == {*PAPERS, COSTS}
    assert {each.in_folder_of for each in EXPERIMENTS} - {""} <= set(names)


def test_the_quick_budget_has_room_for_what_it_runs():
    """Two side by side, then those that take times."""
    alone = sum(each.limit("quick") for each in EXPERIMENTS if each.is_alone)
    beside = sum(each.limit("quick") for each in EXPERIMENTS if not each.is_alone)
    assert SHARE * (alone + beside / LANES) <= 60 * MINUTES["quick"]


def small(name: str, script, paper: str = "zs2", minutes: float = 1.0, **more) -> Experiment:
    """An experiment that runs ``script``, a text of Python, with its folder as argument."""

    def read(results):
        return [Claim("§1", "It works", "works", Estimate(*results), ".1f", 8, 1)]

    read.__module__, title, limit = str(script), name.title(), (minutes, minutes)
    how = {"results": "figures.json", "needs_comfyui": False, "called": name, **more}
    return Experiment(read, paper, title, "", "", limit, "Seed 0.", **how)


@pytest.fixture
def script(tmp_path):
    """Writes a script that is given its folder as ``out``."""

    def write(name: str, body: str):
        path = tmp_path / f"{name}.py"
        path.write_text(f"import pathlib, sys, time\nout = pathlib.Path(sys.argv[-1])\n{body}\n", "utf-8")
        return path.with_suffix("")

    return write


@pytest.fixture
def ctrl_c():
    """As in the report: a process that a shell put into the background would hand on that it ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


FIGURES_WRITTEN = "(out / 'figures.json').write_text('[1.0, 0.5, 1.5]')"


def run(experiments, folder, is_resumed=False, seconds=60.0):
    lines: list[str] = []
    runner = Runner(folder, folder / "measured", "quick", seconds, 1.0, lines.append)
    return runner.run(experiments, 2, is_resumed), lines


def test_one_that_fails_or_writes_nothing_is_named_with_its_reason_and_the_others_go_on(script, tmp_path):
    experiments = [
        small("broken", script("broken", "raise ValueError('no such layer')")),
        small("silent", script("silent", "")),
        small("right", script("right", FIGURES_WRITTEN)),
    ]
    outcomes, lines = run(experiments, tmp_path)
    assert outcomes[0].reason == "it failed with exit code 1: ValueError: no such layer"
    assert outcomes[1].reason == "it wrote no figures.json"
    assert outcomes[2].reason == ""
    assert any("broken" in line and "min left" in line for line in lines)


def test_one_that_takes_too_long_is_ended(script, tmp_path, ctrl_c):
    slow = small("slow", script("slow", "time.sleep(60)"), minutes=1 / 60)
    (outcome,), _ = run([slow], tmp_path)
    assert outcome.reason.startswith("it ran out of time")
    assert outcome.seconds < 20


def test_a_resumed_run_repeats_only_what_gave_nothing(script, tmp_path):
    noted = "(out / 'runs').open('a').write('x')\n"
    good = small("good", script("good", noted + FIGURES_WRITTEN))
    bad = small("bad", script("bad", noted + "sys.exit(3)"))

    def runs(experiment):
        return len((tmp_path / "measured" / experiment.name / "runs").read_text())

    run([good, bad], tmp_path)
    outcomes, _ = run([good, bad], tmp_path, is_resumed=True)
    assert (runs(good), runs(bad)) == (1, 2)
    assert outcomes[0].reason == ""
    run([good], tmp_path)
    assert runs(good) == 1, "without resuming, it begins anew in an empty folder"


def test_other_minutes_or_a_moved_folder_do_not_repeat_what_was_measured_to_the_end():
    words = ["--comfyui", "DIR", "--out", "FOLDER", "--clips", "6", "--minutes", "4.9", "--steps", "8"]
    assert of_figures(words) == ["--clips", "6", "--steps", "8"]
    assert of_figures(["--clips", "6"]) != of_figures(["--clips", "7"])


def test_what_was_measured_before_the_time_was_over_is_read(tmp_path):
    by = {each.name: each for each in EXPERIMENTS}["noise_convergence"]
    out = tmp_path / by.name
    out.mkdir()
    ways = {way: [1.0, 0.01] for way in ("search", "one candidate", "orthogonal")}
    lines = [json.dumps({"key": f"{seed}", "took": 0.5} | ways) + "\n" for seed in range(7)]
    (out / by.results).write_text("".join(lines) + '{"key": "cut o', "utf-8")
    late = Outcome(by.name, "it ran out of time", 1.0, 1.0, [])
    (part,) = assemble([by], [late], tmp_path, "quick", {}).parts
    assert {claim.units for claim in part.claims} == {7}
    assert part.reason
    assert part.processor == 3.5


GROWING = """
out, count = pathlib.Path(sys.argv[2]), sys.argv[-1]
if count == "24":
    time.sleep(60)
(out / "figures.json").write_text(f"[{count}, 1, 30]")
"""


@pytest.mark.slow
def test_gathering_goes_on_until_time_is_over_and_keeps_the_last_figures(script, tmp_path, ctrl_c):
    counted = small("growing", script("growing", GROWING))
    counted = replace(counted, quick="--clips 6", counted_by="--clips")
    too_many = replace(counted.grown("quick", 24), minutes=(0.05, 0.05))
    runner = Runner(tmp_path, tmp_path / "measured", "quick", 60.0, 1.0, lambda _: None)
    figures = []
    for asked in (counted, counted.grown("quick", 12), too_many, too_many):
        (outcome,) = runner.run([asked], 1, True)
        (part,) = assemble([asked], [outcome], tmp_path / "measured", "quick", {}).parts
        figures.append(part.claims[0].found.value)
        assert not part.reason
        if asked is too_many:
            runner.end = 0.0
    assert figures == [6, 12, 12, 12]
    assert "12" in outcome.arguments


ADDING = """
out, count = pathlib.Path(sys.argv[2]), sys.argv[-1]
with (out / "records.jsonl").open("a") as file:
    file.write("{}\\n" * 3)
if count == "12":
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_larger_run_that_is_cut_off_leaves_the_earlier_one_and_the_records_it_added(script, tmp_path, ctrl_c):
    counted = small("adding", script("adding", ADDING), results="records.jsonl")
    counted = replace(counted, quick="--clips 6", counted_by="--clips")
    larger = replace(counted.grown("quick", 12), minutes=(0.05, 0.05))
    runner = Runner(tmp_path, tmp_path / "measured", "quick", 60.0, 1.0, lambda _: None)
    for asked in (counted, larger):
        (outcome,) = runner.run([asked], 1, True)
        assert not outcome.reason
        assert outcome.arguments[-1] == "6"
    assert len((tmp_path / "measured" / "adding" / "records.jsonl").read_text().splitlines()) == 6
    assert runner._kept(counted), "a resumed report does not begin it again"


def test_nothing_is_begun_when_no_time_is_left(script, tmp_path):
    (outcome,), _ = run([small("late", script("late", FIGURES_WRITTEN))], tmp_path, seconds=0.0)
    assert outcome.reason == "no time was left for it"


def test_those_that_share_a_folder_take_turns(script, tmp_path):
    body = "busy = out / 'busy'\nbusy.touch(exist_ok=False)\ntime.sleep(0.5)\nbusy.unlink()\n" + FIGURES_WRITTEN
    path = script("sharing", body)
    experiments = [small("first", path), small("second", path, in_folder_of="first")]
    outcomes, _ = run(experiments, tmp_path)
    assert [outcome.reason for outcome in outcomes] == ["", ""]


# As a user runs it ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_host_measures_and_writes_page_and_markdown(comfyui_path, tmp_path):
    command = [sys.executable, PACK / "host.py", "report", "--comfyui", comfyui_path, "--python", sys.executable]
    command += ["--only", "noise_search", "--output", tmp_path, "--minutes", "400"]  # a busy machine, too
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 0, result.stderr
    assert f"Report:  {tmp_path / 'index.html'}" in result.stdout
    shown = (tmp_path / "index.html").read_text("utf-8")
    times = json.loads((tmp_path / "measured" / "quick" / "noise_search" / "figures.json").read_text())
    assert {len(rounds) for rounds in times.values()} == {7}
    assert "Dependency noise, bisection" in shown
    assert "Dependency noise, bisection" in (tmp_path / "REPORT.md").read_text("utf-8")
    assert str(comfyui_path) not in (tmp_path / "REPORT.md").read_text("utf-8")
