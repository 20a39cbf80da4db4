"""Tell the user how far a batch is, and how long it will go on."""

import sys
import threading
import time
from typing import Any, TextIO

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
        self._lock = threading.Lock()
        self._seconds: list[float] = []
        self._line = ""

    def say(self, text: str) -> None:
        """Tell something, above the moving line."""
        with self._lock:
            self._write(f"batch: {text}\n")

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
        if not self._stream.isatty():
            return
        share = sum(each.fraction for each in list(schedule.active.values()))
        done = (self._before + schedule.ended + share) / self._total
        left = self.time_left(schedule)
        runs = ", ".join(f"{each.job.run.number}: {each.fraction:.0%}" for each in list(schedule.active.values()))
        with self._lock:
            self._line = f"{'█' * round(30 * done):·<30} {done:4.0%}  {left and left + ' left'}  {runs}"[:110]
            self._write("")

    def close(self) -> None:
        """Leave the moving line."""
        with self._lock:
            self._line = ""
            self._write("")

    def _write(self, text: str) -> None:
        if self._stream.isatty():
            text = f"\r\x1b[K{text}{self._line}"
        encoding = self._stream.encoding or "ascii"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()
