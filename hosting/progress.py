"""A progress bar for one line of a terminal."""

import sys
from typing import TextIO


class ProgressBar:
    """Shows how far the nodes of a prompt are; a terminal sees a bar, a log file a few lines for each node."""

    def __init__(self, titles: dict[str, str], stream: TextIO = sys.stderr) -> None:
        """``titles``: node id → what to call it, for all nodes of the prompt."""
        self._titles = titles
        self._stream = stream
        self._fractions: dict[str, float] = {}

    def update(self, node: str, value: float, maximum: float) -> None:
        """Take one report of the server: node ``node`` is at ``value`` of ``maximum``. Repetitions are silent."""
        before, now = self._fractions.get(node, -1.0), value / maximum if maximum else 1.0
        if before == now:
            return
        self._fractions[node] = now
        done = sum(self._fractions.values()) / max(len(self._titles), len(self._fractions))
        steps = f" {value:.0f}/{maximum:.0f}" if maximum > 1 else ""
        title = self._titles.get(node, node) + steps
        if self._stream.isatty():
            self._write(f"\r{'█' * round(30 * done):·<30} {done:4.0%}  {title:<40.40}")
        elif int(4 * max(before, 0.0)) != int(4 * now):
            self._write(f"{done:4.0%}  {title}\n")

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the line, at 100% unless an error came: the server does not report its last nodes."""
        if self._stream.isatty():
            self._write("\n" if error else f"\r{'█' * 30} 100%  {'done':<40}\n")
        elif not error:
            self._write("100%  done\n")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "ascii"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()
