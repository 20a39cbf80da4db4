"""Two computations that go through a model in step, one taking at every layer what the other has there.

Source and target of an edit that cannot share a model call, as when their prompts differ in length, are two calls. So
that nothing but one layer's tensors need be kept, they take turns: the target runs until it needs something from the
source, and only then does the source run on, until it has it. The source has a thread of its own; the two never compute
at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from threading import Semaphore, Thread
from typing import Any

import torch


class NothingToTakeError(RuntimeError):
    """The source has ended and the target asks for more."""


class _AbandonedError(BaseException):
    """Ends the source where it waits, after the target has failed. Nothing that catches errors may catch it."""


class Lockstep:
    """One pair of computations at a time."""

    is_running = False

    def run(self, source: Callable[[], Any], target: Callable[[], Any]) -> tuple[Any, Any]:
        """The results of both. An error of either is raised here, once both have ended."""
        self._asked, self._answered = Semaphore(0), Semaphore(0)
        self._given: list[Any] = []
        self._result: Any = None
        self._error: BaseException | None = None
        self._target = "runs"
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        thread = Thread(target=copy_context().run, args=(self._compute, source, *modes))
        self.is_running = True
        thread.start()
        try:
            of_target = target()
            self._target = "has ended"
        except BaseException:  # a cancel too: the source must end with it
            self._target = "has failed"
            raise
        finally:
            self._asked.release()
            thread.join()
            self.is_running = False
        if self._error is not None:
            raise self._error
        return self._result, of_target

    def give(self, value: Any) -> None:
        """Called by the source; returns when the target asks for what comes after ``value``."""
        if self._target != "runs":
            return
        self._given.append(value)
        self._answered.release()
        self._wait()

    def take(self) -> Any:
        """Called by the target: what the source gives next. NothingToTakeError if it gives nothing more."""
        self._asked.release()
        self._answered.acquire()
        if self._given:
            return self._given.pop()
        raise self._error or NothingToTakeError

    def _wait(self) -> None:
        self._asked.acquire()
        if self._target == "has failed":
            raise _AbandonedError

    def _compute(self, source: Callable[[], Any], inference: bool, grad: bool) -> None:
        try:
            self._wait()
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                self._result = source()
        except BaseException as error:  # raised in the target's thread
            self._error = error
        finally:
            self._answered.release()
