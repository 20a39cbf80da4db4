"""Files that nodes save into ComfyUI's output folder, and find there again; examples come with the pack."""

from __future__ import annotations

from pathlib import Path

import folder_paths

EXAMPLES = Path(__file__).parent.parent / "workflows" / "assets"
EXAMPLE = "(example) "  # before the names of those


def next_path(filename_prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A path that is free, in the output folder, and what the node tells the page of it.

    ComfyUI refuses a prefix that leads out of the folder.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        filename_prefix, folder_paths.get_output_directory()
    )
    file = f"{name}_{counter:05}_{suffix}"
    return Path(folder, file), {"filename": file, "subfolder": subfolder, "type": "output"}


def saved_files(suffix: str) -> list[str]:
    """The files of a kind in the output folder, relative to it, and the examples; links out of it are left out."""
    folder = Path(folder_paths.get_output_directory()).resolve()
    inside = [path for path in folder.rglob(f"*{suffix}") if path.is_file() and path.resolve().is_relative_to(folder)]
    examples = [EXAMPLE + path.name for path in sorted(EXAMPLES.glob(f"*{suffix}"))]
    return sorted(path.relative_to(folder).as_posix() for path in inside) + examples


def saved_path(file: str, suffix: str, what: str, saver: str) -> Path:
    """The path of a saved file; FileNotFoundError for one that is neither in the output folder nor an example.

    ``what``: it is, "a saved registry"; ``saver``: the node that writes such files.
    """
    if file not in (saved := saved_files(suffix)):
        raise FileNotFoundError(
            f"file: expected {what} in the output folder, got {file!r}. "
            f"There are: {', '.join(saved) or f'none; save one with {saver}'}."
        )
    if file.startswith(EXAMPLE):
        return EXAMPLES / file.removeprefix(EXAMPLE)
    return Path(folder_paths.get_output_directory(), file)
