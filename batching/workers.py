"""A worker runs prompts on one ComfyUI server and brings back what they saved and printed."""

import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..client.errors import PromptError, ServerGone
from ..client.server import AWAY, Json, RunningServer

OnFraction = Callable[[float], None]
"""Told which share of a prompt is done."""


_REMAKES = 2


class _FileLost(Exception):
    """The server says that a node saved a file, and does not have it."""


@dataclass(frozen=True)
class SavedFile:
    """A file that a node saved."""

    node: str
    filename: str
    kind: str
    """``output``, or ``temp`` for previews."""
    data: bytes


@dataclass(frozen=True)
class Result:
    """What a prompt made."""

    files: list[SavedFile] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """Node id → what it showed as text."""
    seconds: float = 0.0


class Worker(Protocol):
    """Runs one prompt at a time."""

    name: str

    def run(self, prompt: Json, prompt_id: str, on_fraction: OnFraction) -> Result:
        """Raises PromptError if the prompt fails, ServerGone if the server does."""

    def knows(self, prompt_id: str) -> bool:
        """Whether the server has this prompt already, or had it."""

    def is_back(self) -> bool:
        """Whether the server can be given prompts; starts it anew if it is this worker's to start."""

    def withdraw(self, prompt_id: str) -> None:
        """Stop a prompt, as far as the server still listens."""


class ServerWorker:
    """A worker for a server at an address."""

    def __init__(self, server: RunningServer, beside_others: bool = False) -> None:
        self.server, self._beside_others = server, beside_others
        self.name = server.url

    def run(self, prompt: Json, prompt_id: str, on_fraction: OnFraction) -> Result:
        for _ in range(_REMAKES):
            try:
                return self._run(prompt, prompt_id, on_fraction)
            except _FileLost:
                # Its folder was emptied, and it gives the names that it remembers. It forgets when it is idle next, so
                # the first attempt may still come too early.
                self.server.forget(prompt_id)
        try:
            return self._run(prompt, prompt_id, on_fraction)
        except _FileLost as error:
            raise PromptError(f"{error} It was made again, and is still not there: look at that node.") from error

    def _run(self, prompt: Json, prompt_id: str, on_fraction: OnFraction) -> Result:
        started = time.monotonic()
        shares: dict[str, float] = {}

        def on_progress(node: str, value: float, maximum: float) -> None:
            shares[node] = value / maximum if maximum else 1.0
            on_fraction(min(sum(shares.values()) / len(prompt), 1.0))

        if self._beside_others:
            prompt = _under_own_names(prompt, prompt_id)
        entry = self.server.queue(prompt, on_progress, prompt_id)
        seconds = measured_seconds(entry) or time.monotonic() - started
        return Result(self._download(entry), shown_texts(entry), seconds)

    def _download(self, entry: Json) -> list[SavedFile]:
        found = []
        for node, results in entry["outputs"].items():
            for file in listed(results):
                if isinstance(file, dict) and "filename" in file:
                    try:
                        data = self.server.download(file)
                    except urllib.error.HTTPError as error:
                        lost = _FileLost if error.code == 404 else PromptError
                        raise lost(f"The server does not give {file['filename']} of node {node}: {error}.") from error
                    except AWAY as error:
                        raise ServerGone(f"{self.name} went away before {file['filename']} was fetched.") from error
                    found.append(SavedFile(node, file["filename"], file.get("type", "output"), data))
        return found

    def knows(self, prompt_id: str) -> bool:
        try:
            return self.server.knows(prompt_id)
        except AWAY:
            return False

    def is_back(self) -> bool:
        return self.server.is_there()

    def withdraw(self, prompt_id: str) -> None:
        self.server.withdraw(prompt_id)


def _under_own_names(prompt: Json, prompt_id: str) -> Json:
    """Servers may share an output folder. Each counts its files before it writes them, and would write over those that
    another one numbers alike at that moment."""

    def named(inputs: Json) -> Json:
        prefix = inputs.get("filename_prefix")
        return inputs | {"filename_prefix": f"{prefix}_{prompt_id[:8]}"} if isinstance(prefix, str) else inputs

    return {key: node | {"inputs": named(node["inputs"])} for key, node in prompt.items()}


def listed(results: Json) -> list[Any]:
    """All that a node showed, without the names under which it did."""
    return [item for result in results.values() if isinstance(result, list) for item in result]


def shown_texts(entry: Json) -> dict[str, str]:
    """Node id → the text that it showed, as PreviewAny does."""
    texts = {}
    for node, results in entry["outputs"].items():
        parts = [text for text in listed({"text": results.get("text")}) if isinstance(text, str)]
        if parts:
            texts[node] = "\n".join(parts)
    return texts


def measured_seconds(entry: Json) -> float | None:
    """How long the server worked, by its own clock; None if it does not say."""
    times = {kind: data.get("timestamp") for kind, data in entry["status"]["messages"]}
    start, end = times.get("execution_start"), times.get("execution_success")
    return (end - start) / 1000 if start and end else None
