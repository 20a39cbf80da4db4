"""The floors that CONTRIBUTING.md draws are those of the code: imports between rooms only go down."""

import ast
import re
from pathlib import Path

import pytest
from coherence.hosting.provision import PACK

TEXT = (PACK / "CONTRIBUTING.md").read_text("utf-8")
FLOORS = {room: int(floor) for room, floor in re.findall(r"^(\w+)/ .* floor (\d)$", TEXT, flags=re.MULTILINE)}


def rooms_imported_by(path: Path) -> set[str]:
    """The rooms of the pack outside its own that a file imports from."""
    up = len(path.relative_to(PACK).parts)
    found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    outside = [node for node in found if node.level == up]
    names = [name for node in outside for name in ([node.module] if node.module else [a.name for a in node.names])]
    return {name.partition(".")[0] for name in names}


def test_every_room_with_code_for_nodes_has_a_floor():
    assert FLOORS.keys() >= {
        "nodes",
        "files",
        "training",
        "samplers",
        "attention",
        "techniques",
        "noise",
        "frames",
        "metrics",
    }


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_from_the_floors_below_alone(room):
    files = list((PACK / room).rglob("*.py"))
    assert files
    rising = {
        path.relative_to(PACK).as_posix(): other
        for path in files
        for other in rooms_imported_by(path) & FLOORS.keys()
        if FLOORS[other] >= FLOORS[room]
    }
    assert not rising


@pytest.mark.parametrize("room", FLOORS)
def test_rooms_without_a_floor_are_known_to_faces_alone(room):
    """What runs a server, measures or draws is no part of what nodes are made of; the demo has nodes."""
    known = {other for path in (PACK / room).rglob("*.py") for other in rooms_imported_by(path)} - FLOORS.keys()
    assert known <= ({"demo"} if room == "nodes" else set())


def test_only_the_rooms_that_are_named_import_comfyui(comfyui_path):
    (named,) = re.findall(r"Only ((?:`\w+/`(?:, | and )?)+) import ComfyUI, and `(.+?)` for the output folder", TEXT)
    may, (exception, its) = set(re.findall(r"`(\w+)/`", named[0])), (named[1], {"folder_paths"})
    theirs = {path.stem for path in comfyui_path.iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms = FLOORS.keys() | {"client", "batching", "hosting"}
    assert may <= rooms | {"demo"}
    for room in sorted(rooms - may):
        for path in (PACK / room).rglob("*.py"):
            nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
            names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
            names += [
                node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
            ]
            found, file = {name.partition(".")[0] for name in names} & theirs, path.relative_to(PACK).as_posix()
            assert found == (its if file == exception else set()), file


def test_faces_import_no_faces():
    """What they share is in inputs.py, checks.py, charts.py and their like."""
    from coherence.nodes import FACES

    faces = {Path(face.__file__).stem for face in FACES}
    for path in (PACK / "nodes" / f"{face}.py" for face in sorted(faces)):
        found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        beside = {node.module.partition(".")[0] for node in found if node.level == 1 and node.module}
        assert not beside & faces, path.name
