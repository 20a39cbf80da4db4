"""The manifest: what was begun and what came of it, a line of JSON each, safe against a crash at any moment."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..client.errors import ComfyError
from ..client.locking import lock

Json = dict[str, Any]
NAME = "manifest.jsonl"
DONE, FAILED = "done", "failed"


def now() -> str:
    """The time in UTC, as the manifest writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def to_json(value: Any, indent: int | None = None) -> bytes:
    """JSON that keeps letters readable; half a surrogate pair, which UTF-8 cannot hold, becomes JSON's escape of it."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole, on the disk, or not there."""
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class Manifest:
    """The lines of a manifest, and the file to which new ones are added.

    ``finished``: run key → its last line of event "finished"; ``begun``: run key → its last line of event "begun",
    unless it was stopped on purpose.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[str, Json] = {}
        self.begun: dict[str, Json] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:  # a crash cut the last line off
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ComfyError(
                    f"Line {number} of {self.path} was not written by batch.py: {error!r}. Repair or remove it, "
                    "or name another folder with --out."
                ) from error

    def _take(self, line: Json) -> None:
        if line["event"] == "finished":
            self.finished[line["key"]] = line
        elif line["event"] == "begun":
            self.begun[line["key"]] = line
        elif line["event"] == "stopped":
            self.begun.pop(line["key"], None)

    def add(self, event: str, **fields: Any) -> None:
        """Add a line; it is on the disk when this returns."""
        line = {"event": event, "time": now(), **fields}
        with self.path.open("ab") as file:
            file.write(to_json(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def is_finished(self, key: str) -> bool:
        """Whether a run came to its end, and what it saved is still there, if it went well."""
        line = self.finished.get(key)
        if line is None or line["status"] != DONE:
            return line is not None
        files = ((self.path.parent / file["path"], file["bytes"]) for file in line["files"])
        return all(path.is_file() and path.stat().st_size == size for path, size in files)


@contextmanager
def open_manifest(folder: Path) -> Iterator[Manifest]:
    """The manifest in a folder, made if it is not there; it is ours alone in the meantime.

    Raises:
        ComfyError: the folder cannot be written, another batch writes to it, or its manifest is damaged.
    """

    def refuse() -> None:
        raise ComfyError(f"Another batch.py writes to {folder}: wait for it, or name another folder with --out.")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ComfyError(
            f"The output folder {folder} cannot be written: {error.strerror}. Name another with --out."
        ) from error
    with lock(folder / ".lock", on_wait=refuse):
        yield Manifest(folder / NAME)
