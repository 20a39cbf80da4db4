"""What every training node has: progress with loss and time left, and a chart of the loss."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import accumulate

import numpy as np
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from torch import Tensor

from ..training.loop import History
from .charts import COLOURS, MUTED, new_figure, render, style_axes

SMOOTHING = 0.95


class Progress:
    """Called after every step: moves the node's bar, writes loss and time left on the node, obeys cancel."""

    def __init__(self, steps: int, node_id: str | None) -> None:
        self._steps, self._node_id = steps, node_id
        self._bar = ProgressBar(steps)

    def __call__(self, history: History) -> None:
        throw_exception_if_processing_interrupted()
        step = len(history.losses)
        self._bar.update_absolute(step)
        if step % max(1, self._steps // 100) == 0 or step == self._steps:
            left = (self._steps - step) * history.seconds_a_step
            recent = history.mean(slice(-max(10, self._steps // 20), None))
            text = f"step {step} of {self._steps}, loss {recent:.4f}, {time_text(left)} left"
            _say(text, self._node_id)
            if step % max(1, self._steps // 10) == 0:
                logging.info("Training: %s", text)


def _say(text: str, node_id: str | None) -> None:
    from server import PromptServer

    if node_id is not None and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)


def time_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def draw_losses(history: History, title: str, unit: str = "mean squared error") -> Tensor:
    """The loss of every step, in ``unit``, and its moving average, as an IMAGE (1, height, width, 3)."""
    first, last = history.ends()
    total = time_text(sum(history.seconds))
    figure = new_figure(
        title,
        f"{len(history.losses)} steps in {total}; mean loss {first:.4f} in the first tenth, {last:.4f} in the last.",
    )
    axes = figure.add_axes((0.07, 0.11, 0.9, 0.66))
    style_axes(axes, "Loss", "step", unit, "dots: single steps; line: moving average")
    steps = np.arange(1, len(history.losses) + 1)
    axes.scatter(steps, history.losses, s=6, color=MUTED, alpha=0.5, linewidths=0)
    axes.plot(steps, _smoothed(history.losses), color=COLOURS[0], linewidth=2)
    axes.set_yscale("log")
    return render(figure)


def _smoothed(losses: list[float]) -> list[float]:
    """Exponential moving average without its start's bias."""
    step: Callable[[float, float], float] = lambda mean, loss: SMOOTHING * mean + (1 - SMOOTHING) * loss  # noqa: E731
    weighted, weights = accumulate([0.0, *losses], step), accumulate([0.0, *[1.0] * len(losses)], step)
    return [mean / weight for mean, weight in list(zip(weighted, weights, strict=True))[1:]]
