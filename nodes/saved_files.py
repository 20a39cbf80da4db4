"""What nodes that save into ComfyUI's output folder, and those that load from there, have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io

from ..files.saved import SavedFiles
from .node import Node


class SavingNode(Node):
    """Saves one input. ``files``: of which kind; ``listed_as``: its name in what the page is told."""

    files: ClassVar[SavedFiles]
    listed_as: ClassVar[str]

    @staticmethod
    def prefix_input(default: str, advice: str) -> io.String.Input:
        return io.String.Input(
            "filename_prefix",
            default=default,
            tooltip=f"Folder and start of the file name, inside the output folder; a number is appended. {advice}",
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        return cls.files.prefix_validity(filename_prefix)

    @classmethod
    def save(cls, value: Any, filename_prefix: str) -> io.NodeOutput:
        return io.NodeOutput(ui={cls.listed_as: [cls.files.save(value, filename_prefix)]})


class LoadingNode(Node):
    """Loads a file of the kind ``files``."""

    files: ClassVar[SavedFiles]

    @classmethod
    def file_input(cls) -> io.Combo.Input:
        return io.Combo.Input(
            "file",
            options=cls.files.names(),
            tooltip="A file in the output folder. Names that begin with '(example)' come with the git repository. "
            "Press R to refresh the list.",
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return cls.files.validity(file)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return cls.files.fingerprint(file)
