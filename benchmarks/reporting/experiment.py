"""An experiment of a report: a script, its arguments for each budget, and how its figures are read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from claims import Claim, Cost, Table
from harness import RECORDS, TOOK

COSTS = "costs"
BUDGETS = ("quick", "full")
ENOUGH = 0.7
"""Of its limit, after which an experiment begins nothing more."""


@dataclass(frozen=True)
class Experiment:
    """A script, and how it is run and read. In arguments ``{minutes}`` are those after which it is to begin nothing
    more."""

    read: Callable[[Any], Sequence[Claim | Cost | Table]]
    """What the script says of its figures: a function of it."""
    paper: str
    """One of ``PAPERS``, or ``COSTS``."""
    title: str
    quick: str
    full: str
    minutes: tuple[float, float]
    """After which it is stopped, for either budget."""
    setting: str
    """What it measured, and from which seeds, in words."""
    pictures: dict[str, str] = field(default_factory=dict)
    """File → what it shows."""
    results: str = RECORDS
    """The file with the figures, in its folder."""
    is_alone: bool = False
    """It takes times: nothing else runs beside it."""
    in_folder_of: str = ""
    """Another experiment, whose folder it goes on with."""
    needs_comfyui: bool = True
    called: str = ""
    """Where it is not called as its script."""
    counts_in_part: bool = False
    """What it wrote before it failed or ran out of time is shown, too: each of its records stands for itself."""
    counted_by: str = ""
    """The option that says how many scenes or clips it has: more decide more claims."""
    units_of_one: float = 1.0
    """Units of a claim that each of these gives."""
    further: tuple[str, ...] = ()
    """Words after all others; on the page, of a file only its name."""
    needs: str = ""
    """Another experiment, before it: without what that found, it is not begun."""

    @property
    def script(self) -> str:
        """Without its suffix."""
        return self.read.__module__

    @property
    def name(self) -> str:
        return self.called or self.script

    def arguments(self, budget: str, comfyui: Path, out: Path, pace: float = 1.0) -> list[str]:
        minutes = f"{ENOUGH * self.limit(budget, pace) / 60:.3g}"
        text = self._text(budget)
        words = ["--out", str(out), *shlex.split(text.format(minutes=minutes)), *self.further]
        return ["--comfyui", str(comfyui), *words] if self.needs_comfyui else words

    def command(self, budget: str) -> str:
        """As it can be typed."""
        words = self.arguments(budget, Path("DIR"), Path("FOLDER"))
        words = [Path(word).name if Path(word).is_absolute() else word for word in words]
        return shlex.join(["python", f"benchmarks/{self.script}.py", *words])

    def limit(self, budget: str, pace: float = 1.0) -> float:
        """Seconds; ``pace`` times as many as on a quiet machine."""
        return 60 * pace * self.minutes[BUDGETS.index(budget)]

    @property
    def has_records(self) -> bool:
        """Lines that can be gone on with, rather than figures written at once."""
        return self.results.endswith(".jsonl")

    def findings(self, out: Path) -> list[Claim | Cost | Table]:
        """What came out, of the file that it wrote to ``out``."""
        return [*self.read(self._results(out))]

    def processor(self, out: Path) -> float:
        """Seconds of processors that its records took, in all runs."""
        return sum(record.get(TOOK, 0.0) for record in self._results(out)) if self.has_records else 0.0

    def _results(self, out: Path) -> Any:
        text = (out / self.results).read_text("utf-8")
        # the last line may be cut off where it was stopped
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in lines] if self.has_records else json.loads(text)

    def count(self, budget: str) -> int:
        """Of scenes or clips, as its arguments say; 0 where nothing counts them."""
        found = re.search(rf"{self.counted_by} (\d+)", self._text(budget)) if self.counted_by else None
        return int(found[1]) if found else 0

    def grown(self, budget: str, count: int) -> Experiment:
        """With so many scenes or clips, and as much more time."""
        before, place = self.count(budget), BUDGETS.index(budget)
        texts, minutes = [self.quick, self.full], [*self.minutes]
        texts[place] = texts[place].replace(f"{self.counted_by} {before}", f"{self.counted_by} {count}")
        minutes[place] *= count / before
        return replace(self, quick=texts[0], full=texts[1], minutes=(minutes[0], minutes[1]))

    def _text(self, budget: str) -> str:
        return (self.quick, self.full)[BUDGETS.index(budget)]
