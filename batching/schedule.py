"""Share runs out over workers: each is recorded once, whatever servers come and go."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..client.errors import ComfyError, PromptError, ServerGone
from ..client.server import AWAY
from .variations import Run
from .workers import Result, Worker

_LOOK_AGAIN = 1.0  # seconds


@dataclass
class Job:
    """A run that is to be made."""

    run: Run
    begun_as: str | None = None
    """Id of a prompt that an earlier batch queued and that its worker still has: it is waited for."""
    worker: str | None = None
    """The only worker that may take it."""
    losses: int = 0
    """How many times a server went away with it."""


@dataclass
class Activity:
    """What a worker does now."""

    job: Job
    prompt_id: str
    since: float = field(default_factory=time.monotonic)
    fraction: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with a result, or an error."""

    run: Run
    worker: str
    prompt_id: str
    attempts: int
    begun: float
    """Unix time."""
    waited: float
    """Seconds from queueing to the end, on our clock."""
    result: Result | None = None
    error: str | None = None


class Schedule:
    """Runs jobs on workers, a thread for each worker.

    Args:
        jobs: In the order in which they are begun.
        workers: Who runs them.
        on_begin: Called with run, worker and prompt id before the server gets the prompt.
        on_end: Called once for every run, with its outcome. Neither is called by two threads at a time.
        on_news: Told in words what else happens.
        retries: How many times a run may lose its server before it is given up as one that kills servers.
        patience: Seconds that a worker waits for its server to come back.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: Sequence[Worker],
        on_begin: Callable[[Run, str, str], None],
        on_end: Callable[[Outcome], None],
        on_news: Callable[[str], None],
        retries: int,
        patience: float,
    ) -> None:
        self._waiting = deque(jobs)
        self._workers = workers
        self._on_begin, self._on_end, self._on_news = on_begin, on_end, on_news
        self._retries, self._patience = retries, patience
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._is_stopping = False
        self.total, self.ended = len(jobs), 0
        self.active: dict[str, Activity] = {}
        """Worker's name → what it does; workers that wait for a run or for their server do nothing."""
        self.stopped: list[Activity] = []
        """What was under way when the user stopped everything."""
        self.live = {worker.name for worker in workers}
        """Workers that have not been given up."""

    def run(self, on_look: Callable[[], None]) -> None:
        """Return when every run has ended; ``on_look`` is called once a second meanwhile.

        Raises:
            ComfyError: no worker is left, and runs are.
            KeyboardInterrupt: as the user asked; the servers have been told to stop.
        """
        threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in self._workers]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                with self._changed:
                    self._changed.wait(_LOOK_AGAIN)
                on_look()
        except KeyboardInterrupt:
            self._stop()
            raise
        if self._error:
            raise self._error
        if self.ended < self.total:
            raise ComfyError(
                f"No server is left: {self.total - self.ended} of {self.total} runs are still to be made. Start the "
                "servers and run the same command again: finished runs are not repeated."
            )

    def _stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            active = dict(self.active)
            self.stopped = list(active.values())
            self._changed.notify_all()
        for worker in self._workers:
            if worker.name in active:
                try:
                    worker.withdraw(active[worker.name].prompt_id)
                except (*AWAY, ComfyError) as error:
                    self._on_news(f"{worker.name} could not be told to stop: {error}")

    def _work(self, worker: Worker) -> None:
        try:
            while job := self._take(worker):
                if not self._attempt(worker, job) and not self._wait_for(worker):
                    break
        except Exception as error:  # raised again where the user sees it
            with self._changed:
                self._error = self._error or error
        finally:
            with self._changed:
                self.live.discard(worker.name)
                self._changed.notify_all()

    def _take(self, worker: Worker) -> Job | None:
        """The next job that ``worker`` may have; waits while others may still give one back. None: it is over."""
        with self._changed:
            while not self._is_over():
                job = next((job for job in self._waiting if job.worker in (None, worker.name)), None)
                if job is not None:
                    self._waiting.remove(job)
                    self.active[worker.name] = Activity(job, job.begun_as or str(uuid.uuid4()))
                    return job
                self._changed.wait(_LOOK_AGAIN)
        return None

    def _is_over(self) -> bool:
        return self._is_stopping or self._error is not None or self.ended == self.total

    def _attempt(self, worker: Worker, job: Job) -> bool:
        """Run a job, once; False if the server went away."""
        activity = self.active[worker.name]
        begun, result, complaint = time.time(), None, None

        def on_fraction(fraction: float) -> None:
            activity.fraction = fraction

        with self._changed:
            self._on_begin(job.run, worker.name, activity.prompt_id)
        is_there = True
        try:
            result = worker.run(job.run.prompt, activity.prompt_id, on_fraction)
        except PromptError as error:
            complaint = str(error)
        except ServerGone as error:
            is_there = False
            job.losses += 1
            self._on_news(f"run {job.run.number} lost its server: {str(error).splitlines()[0]}")
            if job.losses > self._retries:
                complaint = f"Given up: its server went away {job.losses} times while it ran. The last: {error}"
        with self._changed:
            del self.active[worker.name]
            if self._is_stopping:
                return True  # what failed was stopped by us: the next batch runs it
            if result is None and complaint is None:
                job.begun_as = job.worker = None
                self._waiting.appendleft(job)
            else:
                attempts, waited = job.losses + is_there, time.monotonic() - activity.since
                name, prompt_id = worker.name, activity.prompt_id
                self._on_end(Outcome(job.run, name, prompt_id, attempts, begun, waited, result, complaint))
                self.ended += 1
            self._changed.notify_all()
        return is_there

    def _wait_for(self, worker: Worker) -> bool:
        """Whether the server comes back in time, and is still needed."""
        deadline = time.monotonic() + self._patience
        while not worker.is_back():
            with self._changed:
                if self._is_over():
                    return False
                if time.monotonic() > deadline:
                    self._on_news(f"{worker.name} did not come back within {self._patience:.0f} s and is given up")
                    # Jobs that only it could wait for are anybody's now.
                    for job in self._waiting:
                        if job.worker == worker.name:
                            job.begun_as = job.worker = None
                    return False
                self._changed.wait(_LOOK_AGAIN)
        self._on_news(f"{worker.name} answers")
        return True
