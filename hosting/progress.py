"""A progress bar for one line of a terminal."""

import sys
from typing import TextIO


class ProgressBar:
    """Shows how far the nodes of a prompt are; a terminal sees a bar, a log file one line for each node."""

    def __init__(self, titles: dict[str, str], stream: TextIO = sys.stderr) -> None:
        """``titles``: node id → what to call it, for all nodes of the prompt."""
        self._titles = titles
        self._stream = stream
        self._fractions: dict[str, float] = {}
        self._last = ""

    def update(self, node: str, value: float, maximum: float) -> None:
        """Take one report of the server: node ``node`` is at ``value`` of ``maximum``."""
        self._fractions[node] = value / maximum if maximum else 1.0
        done = sum(self._fractions.values()) / max(len(self._titles), len(self._fractions))
        title = self._titles.get(node, node)
        if self._stream.isatty():
            bar = ("█" * round(30 * done)).ljust(30, "·")
            steps = f" {value:.0f}/{maximum:.0f}" if maximum > 1 else ""
            self._write(f"\r{bar} {done:4.0%}  {title + steps:<40.40}")
        elif title != self._last:
            self._last = title
            self._write(f"{done:4.0%}  {title}\n")

    def close(self) -> None:
        """End the line."""
        if self._stream.isatty():
            self._write("\n")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "ascii"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()
