"""Files that nodes save into ComfyUI's output folder, and find there again; examples come with the pack."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy_api.latest import io

EXAMPLES = Path(__file__).parent.parent / "workflows" / "assets"
EXAMPLE = "(example) "  # before the names of those


@dataclass(frozen=True)
class SavedFiles:
    """One kind of file. ``suffix`` ends its names; ``what`` it is: "a saved registry"; ``saver``: the node that
    writes it."""

    suffix: str
    what: str
    saver: str

    def prefix_input(self, default: str, advice: str) -> io.String.Input:
        """The saving node's input."""
        return io.String.Input(
            "filename_prefix",
            default=default,
            tooltip=f"Folder and beginning of the file's name, within the output folder; a number is added. {advice}",
        )

    def file_input(self) -> io.Combo.Input:
        """The loading node's input."""
        return io.Combo.Input(
            "file",
            options=self.names(),
            tooltip="A file in the output folder, or an example that comes with the pack. Press R to see those saved "
            "since the page was loaded.",
        )

    def next_path(self, filename_prefix: str) -> tuple[Path, dict[str, str]]:
        """A path that is free, in the output folder, and what the node tells the page of it.

        ComfyUI refuses a prefix that leads out of the folder.
        """
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{name}_{counter:05}_{self.suffix}"
        return Path(folder, file), {"filename": file, "subfolder": subfolder, "type": "output"}

    def names(self) -> list[str]:
        """Those in the output folder, relative to it, and the examples; links out of it are left out."""
        folder = Path(folder_paths.get_output_directory()).resolve()
        found = (path for path in folder.rglob(f"*{self.suffix}") if path.is_file())
        inside = [path for path in found if path.resolve().is_relative_to(folder)]
        examples = [EXAMPLE + path.name for path in sorted(EXAMPLES.glob(f"*{self.suffix}"))]
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
        """Changes with the file's bytes."""
        return hashlib.sha256(self.path(name).read_bytes()).hexdigest()
