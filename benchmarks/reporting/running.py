"""Runs experiments as processes, some side by side, within a time; what was done is kept, so that a run can go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from .experiment import Experiment

SCRIPTS = Path(__file__).resolve().parent.parent
DONE, LOG = "done.json", "log.txt"
SHARE = 0.6
"""Of its limit, what an experiment should need on a quiet machine; so much is set aside for each that runs alone."""
GRACE = 30.0
"""Seconds that a process gets to end by itself once it was told to."""
CACHES = ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
SHORTEST = 20.0
"""Seconds with which nothing is worth beginning."""


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended: ``reason`` says why it gave nothing, and is empty where it did."""

    name: str
    reason: str
    seconds: float
    processor: float
    """Seconds of processors; 0 where the system does not say."""
    arguments: list[str]


def out_of(experiment: Experiment, folder: Path) -> Path:
    """Where its figures are."""
    return folder / (experiment.in_folder_of or experiment.name)


def asked_before(experiment: Experiment, folder: Path) -> list[str]:
    """The arguments of the run that ended last, or none."""
    path = out_of(experiment, folder) / f"{experiment.name}.{DONE}"
    return Outcome(**json.loads(path.read_text("utf-8"))).arguments if path.exists() else []


NOTHING_OF_IT = ("--minutes", "--out", "--comfyui")
"""Options that change nothing of what is measured to the end: a report's folder may be moved."""


def of_figures(arguments: Sequence[str]) -> list[str]:
    """The arguments on which the figures depend."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if before not in NOTHING_OF_IT and word not in NOTHING_OF_IT]


class Runner:
    """Runs experiments with this Python. ``folder`` keeps what they measure, ``seconds`` are what all may take,
    ``pace`` times as long as on a quiet machine each; each has so many ``threads``, 0 for PyTorch's choice."""

    def __init__(
        self,
        comfyui: Path,
        folder: Path,
        budget: str,
        seconds: float,
        pace: float,
        say: Callable[[str], None],
        threads: int = 1,
    ) -> None:
        self.comfyui, self.folder, self.budget, self.pace, self.say = comfyui, folder, budget, pace, say
        self.threads = threads
        self.began, self.end = time.monotonic(), time.monotonic() + seconds
        self._stopped = threading.Event()
        self._folders: dict[Path, threading.Lock] = {}

    def left(self, reserved: float = 0.0) -> float:
        """Seconds."""
        return self.end - reserved - time.monotonic()

    def run(self, experiments: Sequence[Experiment], lanes: int, is_resumed: bool) -> list[Outcome]:
        """In this order, up to ``lanes`` at once; then, one by one, those that want the machine to themselves, for
        which time is set aside."""
        self._stopped.clear()
        self._forget(experiments, is_resumed)
        alone = [each for each in experiments if each.is_alone]
        beside = [each for each in experiments if not each.is_alone]
        aside = {each.name: SHARE * each.limit(self.budget, self.pace) * (not self._kept(each)) for each in alone}
        reserved = sum(aside.values())
        outcomes: dict[str, Outcome] = {}

        def take(experiment: Experiment, reserved: float) -> None:
            needed = outcomes.get(experiment.needs)
            if needed is not None and needed.reason:
                why = f"it needs “{needed.name}”, which gave nothing"
                outcomes[experiment.name] = Outcome(experiment.name, why, 0.0, 0.0, self._arguments(experiment))
                return
            outcomes[experiment.name] = self._kept(experiment) or self._run(experiment, reserved)

        with ThreadPoolExecutor(lanes) as pool:
            try:
                jobs = [pool.submit(take, each, reserved) for each in beside]
                for job in jobs:
                    job.result()
                for each in alone:
                    reserved -= aside[each.name]
                    take(each, reserved)
            finally:  # Ctrl-C, too, ends what was begun
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
        return [outcomes[each.name] for each in experiments]

    def _forget(self, experiments: Sequence[Experiment], is_resumed: bool) -> None:
        """What was measured before, unless it is gone on with; only folders that a report has made."""
        for each in experiments:
            if not is_resumed:
                shutil.rmtree(out_of(each, self.folder), ignore_errors=True)
            self._folders.setdefault(out_of(each, self.folder), threading.Lock())

    def _kept(self, experiment: Experiment) -> Outcome | None:
        """How it ended before, if it gave its figures."""
        outcome = self._before(experiment)
        is_the_same = outcome and of_figures(outcome.arguments) == of_figures(self._arguments(experiment))
        return outcome if is_the_same else None

    def _before(self, experiment: Experiment) -> Outcome | None:
        """As ``_kept``, with whatever arguments: in gathering, with fewer clips."""
        path = self._done(experiment)
        if not path.exists() or not self._results(experiment).exists():
            return None
        outcome = Outcome(**json.loads(path.read_text("utf-8")))
        return None if outcome.reason else outcome

    def _results(self, experiment: Experiment) -> Path:
        return out_of(experiment, self.folder) / experiment.results

    def _arguments(self, experiment: Experiment) -> list[str]:
        return experiment.arguments(self.budget, self.comfyui, out_of(experiment, self.folder), self.pace)

    def _log(self, experiment: Experiment) -> Path:
        return out_of(experiment, self.folder) / f"{experiment.name}.{LOG}"

    def _done(self, experiment: Experiment) -> Path:
        return out_of(experiment, self.folder) / f"{experiment.name}.{DONE}"

    def _run(self, experiment: Experiment, reserved: float) -> Outcome:
        out = out_of(experiment, self.folder)
        arguments = self._arguments(experiment)
        with self._folders[out]:  # what shares a folder takes turns
            seconds = min(experiment.limit(self.budget, self.pace), self.left(reserved))
            if self._stopped.is_set() or self.left(reserved) < SHORTEST:
                self.say(f"{experiment.name}: no time left")
                return self._before(experiment) or Outcome(
                    experiment.name, "no time was left for it", 0.0, 0.0, arguments
                )
            out.mkdir(parents=True, exist_ok=True)
            results, earlier = self._results(experiment), self._before(experiment)
            written = results.stat().st_mtime_ns if earlier else 0
            self.say(f"{experiment.name}: begins, for {seconds / 60:.1f} min at most")
            began = time.monotonic()
            reason, processor = self._supervise(experiment, arguments, seconds)
            reason = reason.replace(str(out), "FOLDER").replace(str(self.comfyui), "DIR")
            took = time.monotonic() - began
            if not reason and not results.exists():
                reason = f"it wrote no {experiment.results}"
            outcome = Outcome(experiment.name, reason, took, processor, arguments)
            self.say(f"{experiment.name}: {reason or 'done'}, {took:.0f} s; {max(self.left(), 0) / 60:.1f} min left")
            if reason and earlier and (experiment.has_records or results.stat().st_mtime_ns == written):
                return earlier  # its figures are still there, perhaps of more clips
            done = self._done(experiment)
            unfinished = done.with_suffix(".part")
            unfinished.write_text(json.dumps(asdict(outcome), indent=1), "utf-8")
            unfinished.replace(done)
            return outcome

    def _supervise(self, experiment: Experiment, arguments: list[str], seconds: float) -> tuple[str, float]:
        """Run it; returns why it failed, and the seconds of processors that it took."""
        log = self._log(experiment)
        command = [sys.executable, str(SCRIPTS / f"{experiment.script}.py"), *arguments]
        env = dict(os.environ)
        if self.threads:
            env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        caches = self.folder.parent / "caches"  # of what is measured nothing lies elsewhere
        env |= {name: str(caches / name) for name in CACHES}
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, **_group_of_its_own()
            )
            end = time.monotonic() + seconds
            while (taken := _taken(process)) is None and time.monotonic() < end and not self._stopped.wait(0.2):
                pass
            was_running = taken is None
            processor = _end(process) if taken is None else taken
        if self._stopped.is_set() and was_running:
            return "it was stopped", processor
        if was_running:
            return f"it ran out of time, after {seconds / 60:.1f} min", processor
        if process.returncode:
            return failure(process.returncode, log.read_text("utf-8", errors="replace")), processor
        return "", processor


def failure(code: int, log: str) -> str:
    """Why a process ended with ``code``: what it said itself, where it did."""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "").strip()[:600]
    if code == -signal.SIGTERM or (sys.platform != "win32" and code == -signal.SIGKILL):
        return "it was ended by the system, as happens where memory runs out. Lower --frames or --size"
    if last and code == 1 and "Traceback (most recent call last)" not in log:
        return last.rstrip(".")
    return f"it failed with exit code {code}: {last[:300]}"


def _group_of_its_own() -> dict[str, bool | int]:
    """So that Ctrl-C reaches us alone, and a process is ended with those that it started."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _taken(process: subprocess.Popen[bytes]) -> float | None:
    """Seconds of processors that it took, with those that it started and waited for; None while it runs."""
    if sys.platform == "win32":
        return None if process.poll() is None else 0.0
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _end(process: subprocess.Popen[bytes]) -> float:
    """Tell it to end as by Ctrl-C, so that it stops its server; end it if it does not. What it took."""
    process.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
    end, is_killed = time.monotonic() + GRACE, False
    while (taken := _taken(process)) is None:
        if time.monotonic() > end and not is_killed:
            is_killed = True
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return taken
