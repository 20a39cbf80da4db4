"""How far the nodes of a prompt are. Runs in the host's Python."""

import sys
from typing import TextIO

from tqdm import tqdm


class ProgressBar:
    """A terminal sees a bar, a log file a few lines for each node."""

    def __init__(self, titles: dict[str, str], stream: TextIO | None = None) -> None:
        """``titles``: node id → what to call it, for all nodes of the prompt."""
        self._titles = titles
        self._stream = stream or sys.stderr
        self._fractions: dict[str, float] = {}
        form = "{bar:30} {percentage:3.0f}%  {desc}"
        self._bar = tqdm(total=1.0, bar_format=form, file=self._stream, disable=not self._stream.isatty())

    def update(self, node: str, value: float, maximum: float) -> None:
        """Take one report of the server: node ``node`` is at ``value`` of ``maximum``. Repetitions are silent."""
        before, now = self._fractions.get(node, -1.0), value / maximum if maximum else 1.0
        if before == now:
            return
        self._fractions[node] = now
        done = sum(self._fractions.values()) / max(len(self._titles), len(self._fractions))
        title = self._titles.get(node, node) + (f" {value:.0f}/{maximum:.0f}" if maximum > 1 else "")
        self._bar.n = done
        self._bar.set_description_str(title[:40])
        if self._bar.disable and int(4 * max(before, 0.0)) != int(4 * now):
            print(f"{done:4.0%}  {title}", file=self._stream, flush=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the line, at 100% unless an error came: the server does not report its last nodes."""
        if not error:
            self._bar.n = 1.0
            self._bar.set_description_str("done")
            if self._bar.disable:
                print("100%  done", file=self._stream, flush=True)
        self._bar.close()
