"""FAMILIES.md is what happens: every node that touches a model, on a tiny model of every family."""

import asyncio
from functools import cache

import pytest
from coherence.hosting.provision import PACK
from coherence.nodes import CoherenceExtension
from family_page import markdown
from family_subjects import GROUPS, SUBJECTS
from family_table import TRIALS, column

pytestmark = pytest.mark.slow

NODES = [node.GET_SCHEMA() for node in asyncio.run(CoherenceExtension().get_node_list())]
TOUCHING = {"MODEL", "NOISE", "SAMPLER", "GUIDER"}
LOADERS = {"CoherenceDemoModel"}


@pytest.fixture(scope="module")
def on(tiny_models):
    """What comes of every node on a family; tried once."""
    return cache(lambda name: column(name, tiny_models))


def test_every_node_that_touches_a_model_is_tried():
    kinds = {node.node_id: {each.get_io_type() for each in (*node.inputs, *node.outputs)} for node in NODES}
    assert {name for name, types in kinds.items() if types & TOUCHING} - LOADERS == TRIALS.keys()


@pytest.mark.parametrize("family", SUBJECTS.values(), ids=SUBJECTS)
def test_a_node_works_on_a_family_or_says_why_it_cannot(on, family):
    wrong = {node: cell.wrong for node, cell in on(family).items() if cell.wrong}
    assert not wrong


def test_the_table_that_is_published_is_what_happens(on, artefacts):
    groups = {heading: {title: on(name) for title, name in names.items()} for heading, names in GROUPS.items()}
    written = markdown(groups)
    (artefacts / "FAMILIES.md").write_text(written, "utf-8")
    assert (PACK / "FAMILIES.md").read_text("utf-8") == written
