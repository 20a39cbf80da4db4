"""Tell the user how far a batch is, and how long it will go on."""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from .manifest import DONE
from .schedule import Schedule

Json = dict[str, Any]


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


class Progress:
    """A line for every run that ends; on a terminal also one at the bottom that moves."""

    def __init__(self, total: int, finished: int, stream: TextIO | None = None) -> None:
        """``total``: runs of the table; ``finished``: how many of them were so before."""
        self._total, self._before = total, finished
        self._stream = stream or sys.stderr
        self._seconds: list[float] = []
        form = "{bar:30} {percentage:3.0f}%  {desc}"
        silent = not self._stream.isatty()
        self._bar = tqdm(total=total, initial=finished, bar_format=form, file=self._stream, disable=silent, leave=False)

    def say(self, text: str) -> None:
        """Tell something, above the moving line."""
        self._bar.write(f"batch: {text}", file=self._stream)

    def ended(self, record: Json, schedule: Schedule) -> None:
        """Tell how a run ended."""
        self._seconds.append(record["waited"])
        count = self._before + schedule.ended + 1  # this one is counted when it is written down
        if record["status"] == DONE:
            how = f"{record['seconds']:.1f} s"
        else:
            how = f"FAILED: {' '.join(record['error'].split())[:200]}"
        left = self.time_left(schedule, 1)
        tail = f", {left} left" if left else ""
        self.say(f"[{count}/{self._total}] {record['label']}: {how}  ({record['server']}{tail})")

    def time_left(self, schedule: Schedule, just_ended: int = 0) -> str:
        """How long the rest will take; nothing while there is no telling, or nothing left."""
        rest = schedule.total - schedule.ended - just_ended
        active = list(schedule.active.values())
        if rest <= 0 or not schedule.live:
            return ""
        started = [(time.monotonic() - each.since, each.fraction) for each in active if each.fraction > 0]
        if self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
        elif started:
            mean = sum(elapsed / fraction for elapsed, fraction in started) / len(started)
        else:
            return ""
        undone = max(rest - sum(fraction for _, fraction in started), 0.0)
        return duration(undone * mean / min(len(schedule.live), rest))

    def look(self, schedule: Schedule) -> None:
        """Draw the moving line anew."""
        active = list(schedule.active.values())
        left = self.time_left(schedule)
        runs = ", ".join(f"{each.job.run.number}: {each.fraction:.0%}" for each in active)
        self._bar.n = self._before + schedule.ended + sum(each.fraction for each in active)
        self._bar.set_description_str(f"{left and left + ' left'}  {runs}"[:70])

    def close(self) -> None:
        """Take the moving line away."""
        self._bar.close()
