"""Files that nodes save into ComfyUI's output folder, and find there again; examples come with the pack."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import folder_paths

EXAMPLES = Path(__file__).parent.parent / "workflows" / "assets"
EXAMPLE = "(example) "  # before the names of those
_ODD = re.compile(r"[\0-\x1f\x7f]|%(2e|2f|5c|00)|^[/\\]|^[a-z]:|(^|[/\\])\.\.($|[/\\])", re.IGNORECASE)
"""What no system's path within a folder has: control characters, percent codes for path characters, a root, a drive,
the folder above."""


class FileFormat(Protocol):
    """A module such as :mod:`.registry_file`. ``SUFFIX`` ends the files' names; no more bytes than ``MAX_BYTES`` are
    read."""

    SUFFIX: str
    MAX_BYTES: int

    def save(self, value: Any, /, path: Path) -> None: ...

    def load(self, /, path: Path) -> Any: ...


@dataclass(frozen=True)
class SavedFiles:
    """One kind of file. ``what`` it is: "a saved registry"; ``saver``: the node that writes it."""

    format: FileFormat
    what: str
    saver: str

    def save(self, value: Any, filename_prefix: str) -> dict[str, str]:
        """Save ``value`` under a name that is free, in the output folder; returns what the node tells the page of it.

        ValueError where the prefix leads elsewhere, OSError where there is no room or no right to write.
        """
        if (why := self.prefix_validity(filename_prefix)) is not True:
            raise ValueError(why)
        output = folder_paths.get_output_directory()
        try:
            folder, name, first, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
            numbered = (f"{name}_{number:05}_{self.format.SUFFIX}" for number in count(first))
            file = next(each for each in numbered if not os.path.lexists(Path(folder, each)))
            self.format.save(value, Path(folder, file))
        except OSError as error:
            raise OSError(
                f"{self.saver} could not write {self.what} to {Path(output, filename_prefix)}: "
                f"{error.strerror or error}. No partial file is left, and no other file was changed. Free disk space, "
                "make the folder writable, or choose another filename_prefix, then queue again: cached results are "
                "reused."
            ) from error
        return {"filename": file, "subfolder": subfolder, "type": "output"}

    def load(self, name: str) -> Any:
        """What the file holds; FileNotFoundError where there is none, the format's own error where it is another."""
        return self.format.load(self.path(name))

    def prefix_validity(self, prefix: str | None) -> bool | str:
        """True, or why nothing can be saved under ``prefix``; of an input that is linked, None, nothing is known yet.

        ComfyUI refuses some of these by itself, but only once all before it has run.
        """
        if prefix is None:
            return True
        if os.path.basename(prefix) in ("", "."):
            why = "which has no name after its folder. Write the beginning of the file's name there."
        elif _ODD.search(prefix) or not self._is_inside(Path(self._folder(), prefix).parent):
            why = (
                "which leads outside the output folder. Remove '..', drives, leading slashes, control characters and "
                "percent codes, and use no links to other folders."
            )
        else:
            return True
        what = f"expected a folder and the beginning of a name, such as 'folder/name', got {prefix!r}"
        return f"filename_prefix: {what}, {why}"

    def names(self) -> list[str]:
        """Those in the output folder, relative to it, and the examples; links out of it are left out."""
        folder = self._folder()
        found = (path for path in folder.rglob(f"*{self.format.SUFFIX}") if os.path.isfile(path))  # Path's may raise
        inside = [path for path in found if self._is_inside(path)]
        examples = [EXAMPLE + path.name for path in sorted(EXAMPLES.glob(f"*{self.format.SUFFIX}"))]
        return sorted(path.relative_to(folder).as_posix() for path in inside) + examples

    def path(self, name: str) -> Path:
        """The path of one of ``names``; FileNotFoundError for any other."""
        if name not in (names := self.names()):
            raise FileNotFoundError(
                f"file: expected {self.what} in the output folder, got {name!r}. "
                f"There are: {', '.join(names) or f'none; save one with {self.saver}'}."
            )
        if name.startswith(EXAMPLE):
            return EXAMPLES / name.removeprefix(EXAMPLE)
        return Path(folder_paths.get_output_directory(), name)

    def validity(self, name: str | None) -> bool | str:
        """True, or why there is no such file; of an input that is linked, None, nothing is known yet."""
        try:
            return name is None or bool(self.path(name))
        except FileNotFoundError as error:
            return str(error)

    def fingerprint(self, name: str) -> str:
        """Changes when the file is written anew. ComfyUI asks before every run, and reading the momentum of a long
        clip takes a minute."""
        told = self.path(name).stat()
        return f"{told.st_size} {told.st_mtime_ns} {told.st_ino}"

    @staticmethod
    def _folder() -> Path:
        return Path(folder_paths.get_output_directory()).resolve()

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._folder())  # Path's may raise
