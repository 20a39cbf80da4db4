"""The training loop of all techniques: AdamW on some parameters, a callback after every step, a clean stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]
"""``params`` and, where it is not 1, ``rate``: a factor of the learning rate."""


class TrainingError(RuntimeError):
    """Training cannot start, or failed; the message says what to do."""


@dataclass(frozen=True)
class Schedule:
    """``steps`` of the optimiser, each on ``accumulation`` losses; the rate rises over ``warmup`` steps, then stays."""

    steps: int
    learning_rate: float
    warmup: int = 0
    accumulation: int = 1

    def rate(self, step: int) -> float:
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass
class History:
    """What happened: the mean loss of every step, and the seconds that each took."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def seconds_a_step(self) -> float:
        """Of the last twenty; the first is slower than the others."""
        last = self.seconds[1:][-20:] or self.seconds or [0.0]
        return sum(last) / len(last)

    def mean(self, part: slice) -> float:
        chosen = self.losses[part]
        return sum(chosen) / len(chosen)

    def ends(self) -> tuple[float, float]:
        """The mean loss of the first and the last tenth of the steps."""
        tenth = max(1, len(self.losses) // 10)
        return self.mean(slice(tenth)), self.mean(slice(-tenth, None))


def fit(
    groups: Sequence[Group],
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    after_step: Callable[[History], None] = lambda _: None,
) -> History:
    """Descend on ``loss_of(n)``, n counting the losses from 0: AdamW (0.9, 0.999), gradients clipped to norm 1.

    ``after_step`` may raise to stop: the parameters are then as the last whole step left them.

    Raises:
        TrainingError: a loss, or the gradient's norm, is not finite. The step that would have used it is not taken.
    """
    parameters = [p for group in groups for p in group["params"]]
    factors = [group.get("rate", 1.0) for group in groups]
    optimizer = torch.optim.AdamW(
        [{"params": list(group["params"])} for group in groups], betas=(0.9, 0.999), weight_decay=0.01
    )
    history = History()
    for step in range(schedule.steps):
        began = time.perf_counter()
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = schedule.rate(step) * factor
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(schedule.accumulation):
            loss = loss_of(step * schedule.accumulation + part)
            total += _require_finite(loss.item(), "loss", step)
            (loss / schedule.accumulation).backward()
        _require_finite(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item(), "gradient", step)
        optimizer.step()
        history.losses.append(total / schedule.accumulation)
        history.seconds.append(time.perf_counter() - began)
        after_step(history)
    return history


def _require_finite(value: float, what: str, step: int) -> float:
    if not math.isfinite(value):
        raise TrainingError(
            f"The {what} is {value} at step {step}, expected a finite number. Lower learning_rate, or set precision "
            "to fp32 where the node has it; if it happens at step 0, check the latents and the conditioning. Nothing "
            "was changed or written."
        )
    return value


def count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)
