"""How the shipped workflows lie on the canvas, read from their files."""

import json
from itertools import combinations

import pytest
from shipped import FOR_CHECKPOINTS, MODEL_FILES, WORKFLOWS

NOTES = {"Note", "MarkdownNote"}
TITLE = 30
"""Height of a node's title, which lies above its position."""
GROUP_TITLE = 34
Box = tuple[float, float, float, float]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request) -> dict:
    return json.loads(request.param.read_text("utf-8"))


def box_of(node: dict) -> Box:
    """Left, top, right and bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def inside_of(group: dict) -> Box:
    """Where a group's nodes may lie: below its title."""
    x, y, width, height = group["bounding"]
    return x, y + GROUP_TITLE, x + width, y + height


def holds(outer: Box, inner: Box) -> bool:
    return outer[0] < inner[0] and outer[1] < inner[1] and inner[2] < outer[2] and inner[3] < outer[3]


def meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def text_of_notes(workflow: dict) -> str:
    return "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES)


def test_every_node_lies_in_one_named_group_and_notes_in_one_or_beside_all(workflow):
    groups = workflow["groups"]
    assert len(groups) >= 2
    assert all(group["title"] not in ("", "Group") for group in groups)
    for node in workflow["nodes"]:
        around = [group["title"] for group in groups if holds(inside_of(group), box_of(node))]
        beside = not any(meet(inside_of(group), box_of(node)) for group in groups)
        name = node.get("title") or node["type"]
        assert len(around) == 1 or (node["type"] in NOTES and beside), (name, around)


def test_groups_lie_apart_and_each_holds_something(workflow):
    for one, other in combinations(workflow["groups"], 2):
        (x, y, width, height), (x2, y2, width2, height2) = one["bounding"], other["bounding"]
        boxes = (x, y, x + width, y + height), (x2, y2, x2 + width2, y2 + height2)
        assert not meet(*boxes), (one["title"], other["title"])
    for group in workflow["groups"]:
        assert any(holds(inside_of(group), box_of(node)) for node in workflow["nodes"]), group["title"]


def test_numbered_groups_are_read_from_left_to_right(workflow):
    numbered = [group for group in workflow["groups"] if group["title"][0].isdigit()]
    by_number = sorted(numbered, key=lambda group: int(group["title"].split()[0]))
    assert [int(group["title"].split()[0]) for group in by_number] == list(range(1, len(numbered) + 1))
    lefts = [group["bounding"][0] for group in by_number]
    assert lefts == sorted(lefts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_note_says_which_model_files_a_workflow_needs_or_that_it_needs_none(path):
    workflow = json.loads(path.read_text("utf-8"))
    text = text_of_notes(workflow)
    if path not in FOR_CHECKPOINTS:
        assert "**Checkpoint**: none to download" in text
        return
    wanted = [
        (value, MODEL_FILES[entry["widget"]["name"]])
        for node in workflow["nodes"]
        for entry, value in zip(
            [entry for entry in node["inputs"] if "widget" in entry], node.get("widgets_values", []), strict=False
        )
        if entry["widget"]["name"] in MODEL_FILES
    ]
    assert wanted
    for file, folder in wanted:
        assert f"`{file}`" in text
        assert f"`models/{folder}`" in text
