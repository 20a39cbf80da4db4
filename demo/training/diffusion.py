"""What the trainings share: noise levels, rates, number formats, when to stop."""

from __future__ import annotations

import argparse
import os
import signal
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from .optimizer import multiplies_bf16
from .state import Training

LOG, SAVE = 60.0, 300.0  # seconds
FEW_TOKENS = 128**2  # queries by keys


def half_precision(device: torch.device) -> torch.autocast:
    """bf16 where the hardware multiplies it faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """(count,) numbers in [0, 1), one in every part of that length, in random order."""
    return ((torch.arange(count) + torch.rand(count, generator=generator)) / count)[
        torch.randperm(count, generator=generator)
    ]


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise levels of a flow, spread as its sampler's are."""
    return shift * u / (1 + (shift - 1) * u)


def parted(each: Tensor, fine: Tensor) -> dict[str, float]:
    """Means of the losses (B,): of all, and of those at low noise, ``fine`` (B,), and at high, where there are any."""
    parts = {"loss": each, "fine": each[fine], "coarse": each[~fine]}
    return {name: losses.mean().item() for name, losses in parts.items() if len(losses)}


def attention(_, q: Tensor, k: Tensor, v: Tensor, heads: int, *__, **___) -> Tensor:
    """The one whose backward pass is fast: torch's own, which on the CPU is fast for many tokens only, and in fp32."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if q.device.type != "cpu":
        attended = F.scaled_dot_product_attention(q, k, v)
    elif q.shape[2] * k.shape[2] <= FEW_TOKENS:
        attended = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1).to(v.dtype) @ v
    else:
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return attended.transpose(1, 2).flatten(2)


def painters(device: torch.device) -> int:
    """Processes that paint beside the training: as many as cores, where a GPU waits for them."""
    return max(0, (os.cpu_count() or 1) - 2) if device.type == "cuda" else 0


def batches(data: Dataset, first: int, workers: int) -> DataLoader:
    """The batches of all steps from ``first`` on."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    return DataLoader(data, batch_size=None, sampler=range(first, 10**9), num_workers=workers)


@dataclass(frozen=True)
class Schedule:
    """A rate that rises over ``warm_up`` steps of a new optimizer, stays, and falls to zero between the two counts of
    ``plan``, of pictures or clips seen. So a training can be stopped anywhere before the fall."""

    peak: float
    warm_up: int
    plan: tuple[int, int]


class Clock:
    """The learning rate, and when to log, save and stop: on a signal, after ``--seconds``, or where the schedule ends.
    ``beside``: trainings that are saved with this one."""

    def __init__(
        self, training: Training, schedule: Schedule, arguments: argparse.Namespace, *beside: Training
    ) -> None:
        self._saves = (training, *beside)
        self._training, self._end, self._fall = training, time.monotonic() + arguments.seconds, arguments.fall
        plan = tuple(arguments.plan) if arguments.plan else schedule.plan
        self._schedule = replace(schedule, peak=arguments.rate or schedule.peak, plan=plan)
        self._logged = self._saved = time.monotonic()
        self._seen, self._losses, self._stop = training.seen, dict[str, float](), False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stopped)

    def _stopped(self, *_: object) -> None:
        self._stop = True

    @property
    def rate(self) -> float:
        """Of the next step. With ``--fall`` it falls by time, for machines that are lent for minutes."""
        schedule, training = self._schedule, self._training
        fall, end = schedule.plan
        left = (end - training.seen) / max(end - fall, 1)
        if self._fall:
            left = min(left, (self._end - time.monotonic()) / self._fall)
        return schedule.peak * min(1.0, max(0.0, left)) * min(1.0, (training.fresh + 1) / schedule.warm_up)

    def tick(self, **losses: float) -> bool:
        """To be called after every step with its losses, which are smoothed; False after the last one."""
        for name, loss in losses.items():
            self._losses[name] = loss + 0.98 * (self._losses.get(name, loss) - loss)
        now, training = time.monotonic(), self._training
        stop = self._stop or now > self._end or training.seen >= self._schedule.plan[1]
        if distributed.is_initialized():
            anyone = torch.tensor([float(stop)])
            distributed.all_reduce(anyone)
            stop = bool(anyone.item())
        if now - self._logged > LOG or stop:
            speed = (training.seen - self._seen) / max(now - self._logged, 1e-3)
            training.note(**{k: round(v, 5) for k, v in self._losses.items()}, per_second=round(speed, 2))
            self._logged, self._seen = now, training.seen
        if now - self._saved > SAVE or stop:
            for each in self._saves:
                each.save()
            self._saved = time.monotonic()
        return not stop
