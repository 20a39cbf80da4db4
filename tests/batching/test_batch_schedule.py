"""Whatever servers come and go, every run ends once: the schedule under workers that fail by plan."""

import io
import re
import threading
import time
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from coherence.batching.progress import Progress, duration
from coherence.batching.schedule import Activity, Job, Schedule
from coherence.batching.variations import Run
from coherence.batching.workers import Result
from coherence.client.errors import ComfyError, PromptError, ServerGone
from hypothesis import given, settings
from hypothesis import strategies as st


class Planned:
    """A worker that does what it is told at each attempt: "ok", "bad" (a node's error) or "gone"."""

    def __init__(self, name: str, plan: list[str], comes_back: bool = True) -> None:
        self.name, self._plan, self._comes_back = name, plan, comes_back
        self.is_up, self.ids = True, []

    def run(self, prompt, prompt_id, on_fraction) -> Result:
        self.ids.append(prompt_id)
        on_fraction(0.5)
        step = self._plan.pop(0) if self._plan else "ok"
        if step == "bad":
            raise PromptError("node 1 failed")
        if step == "gone":
            raise ServerGone(f"{self.name} went away")
        return Result(seconds=0.1)

    def knows(self, prompt_id: str) -> bool:
        return False

    def is_back(self) -> bool:
        return self._comes_back

    def withdraw(self, prompt_id: str) -> None:
        pass


def run_all(jobs, workers, retries=3, patience=0.0):
    """Outcomes by run number; news."""
    outcomes, news, inside = defaultdict(list), [], threading.Lock()

    def on_end(outcome) -> None:
        assert inside.acquire(blocking=False), "two outcomes are written at once"
        outcomes[outcome.run.number].append(outcome)
        inside.release()

    schedule = Schedule(jobs, workers, lambda *_: None, on_end, news.append, retries, patience)
    try:
        schedule.run(lambda: None)
    finally:
        schedule.outcomes, schedule.news = outcomes, news
    return schedule


def jobs_of(count: int) -> list[Job]:
    return [Job(Run(number, {}, {}, str(number))) for number in range(1, count + 1)]


PLANS = st.lists(st.sampled_from(["ok", "ok", "bad", "gone"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 8), plans=st.lists(PLANS, min_size=1, max_size=3))
def test_every_run_ends_exactly_once(count, plans):
    workers = [Planned(f"worker {place}", list(plan)) for place, plan in enumerate(plans)]
    schedule = run_all(jobs_of(count), workers)
    assert sorted(schedule.outcomes) == list(range(1, count + 1))
    assert {len(ended) for ended in schedule.outcomes.values()} == {1}
    assert schedule.ended == schedule.total == count
    ids = Counter(prompt_id for worker in workers for prompt_id in worker.ids)
    assert set(ids.values()) == {1}, "every attempt is a prompt of its own"


def test_a_nodes_error_is_an_end_and_is_not_tried_again():
    worker = Planned("a", ["bad"])
    (outcome,) = run_all(jobs_of(1), [worker]).outcomes[1]
    assert (outcome.error, outcome.attempts, len(worker.ids)) == ("node 1 failed", 1, 1)


def test_a_run_that_kills_every_server_is_given_up():
    worker = Planned("a", ["gone"] * 3 + ["ok"])
    schedule = run_all(jobs_of(2), [worker], retries=2)
    (outcome,) = schedule.outcomes[1]
    assert outcome.error.startswith("Given up: its server went away 3 times")
    assert schedule.outcomes[2][0].result, "the others go on"


def test_the_run_of_a_server_that_stays_away_is_made_elsewhere():
    gone = Planned("gone", ["gone"], comes_back=False)
    schedule = run_all(jobs_of(4), [gone, Planned("here", [])])
    assert {ended[0].worker for ended in schedule.outcomes.values()} == {"here"}
    assert any("gone did not come back" in line for line in schedule.news)


def test_without_a_server_left_it_says_how_many_runs_are_to_be_made():
    with pytest.raises(ComfyError, match="No server is left: 3 of 3 runs are still to be made"):
        run_all(jobs_of(3), [Planned("a", ["gone"], comes_back=False)])


def test_a_prompt_begun_before_is_waited_for_on_its_server_alone():
    job = jobs_of(1)[0]
    job.begun_as, job.worker = "an earlier prompt", "b"
    workers = [Planned("a", []), Planned("b", [])]
    (outcome,) = run_all([job], workers).outcomes[1]
    assert (outcome.worker, workers[1].ids, workers[0].ids) == ("b", ["an earlier prompt"], [])


def test_what_cannot_be_written_stops_the_batch_and_is_told():
    def on_end(outcome) -> None:
        raise OSError("no space left")

    schedule = Schedule(jobs_of(3), [Planned("a", [])], lambda *_: None, on_end, print, 3, 0.0)
    with pytest.raises(OSError, match="no space left"):
        schedule.run(lambda: None)


class Long(Planned):
    """Runs until it is told to stop; it is told again only when the run has left the schedule."""

    def __init__(self) -> None:
        super().__init__("a", [])
        self._told, self.has_ended = threading.Event(), lambda: False

    def run(self, prompt, prompt_id, on_fraction) -> Result:
        assert self._told.wait(30)
        raise PromptError("interrupted")

    def withdraw(self, prompt_id: str) -> None:
        self._told.set()
        while not self.has_ended():
            time.sleep(0.001)


def test_what_the_user_stops_is_known_although_its_run_has_left_the_schedule_since(monkeypatch):
    monkeypatch.setattr("coherence.batching.schedule._LOOK_AGAIN", 0.01)
    worker, jobs = Long(), jobs_of(2)
    schedule = Schedule(jobs, [worker], lambda *_: None, pytest.fail, print, 3, 0.0)
    worker.has_ended = lambda: not schedule.active

    def look() -> None:
        if schedule.active:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule.run(look)
    assert [activity.job for activity in schedule.stopped] == jobs[:1]


@pytest.mark.parametrize(("seconds", "said"), [(4.4, "4 s"), (65, "1:05 min"), (3 * 3600 + 120, "3:02 h")])
def test_times_are_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_line_that_moves_below_what_is_told_and_a_log_sees_what_is_told():
    activity = Activity(jobs_of(3)[2], "an id", fraction=0.5)
    schedule = SimpleNamespace(total=2, ended=0, active={"a": activity}, live={"a"})
    ended = {"status": "done", "waited": 2.0, "seconds": 1.5, "label": "color = 1", "server": "here"}
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        progress = Progress(4, 2, stream)
        progress.say("run 3 begins")
        progress.look(schedule)
        progress.ended(ended, schedule)
        progress.close()
    assert log.getvalue().splitlines() == ["batch: run 3 begins", "batch: [3/4] color = 1: 1.5 s  (here, 1 s left)"]
    assert all(line in terminal.getvalue() for line in log.getvalue().splitlines())
    assert re.findall(r"(\d+)%  ", terminal.getvalue())[0] == "50"
    assert "62%" in terminal.getvalue()
    assert "3: 50%" in terminal.getvalue()
