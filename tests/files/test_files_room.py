"""What files/ depends on: reading and writing on nothing of the pack, formats on what they keep."""

import ast
from pathlib import Path

import pytest
from coherence.hosting.provision import PACK

READING_AND_WRITING = {"whole", "json_forms", "tensor_file"}
BELOW = ("attention", "frames", "metrics", "noise", "samplers", "techniques", "training")
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "execution"}
FILES = sorted((PACK / "files").glob("*.py"))


def imports_of(path: Path) -> set[tuple[int, str]]:
    """How many floors up each import begins, and what it names."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    found = {(0, alias.name) for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found |= {(node.level, node.module or alias.name) for alias in node.names}
    return found


def test_reading_and_writing_know_nothing_of_the_pack():
    within = {path.stem: {name for level, name in imports_of(path) if level} for path in FILES}
    assert within.keys() >= READING_AND_WRITING
    for name in READING_AND_WRITING:
        assert within[name] <= READING_AND_WRITING


@pytest.mark.parametrize("room", BELOW)
def test_nothing_below_imports_what_keeps_it(room):
    paths = sorted((PACK / room).glob("*.py"))
    assert paths
    assert not [path.name for path in paths for level, name in imports_of(path) if level and "files" in name.split(".")]


def test_only_the_output_folders_file_asks_comfyui():
    asks = {
        path.stem for path in FILES for level, name in imports_of(path) if not level and name.split(".")[0] in COMFYUI
    }
    assert asks == {"saved"}
