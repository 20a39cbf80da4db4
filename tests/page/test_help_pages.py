"""Every node's help page has all its parts, a picture that the page shows, and links that lead somewhere."""

import asyncio
import re
from pathlib import Path

import pytest
from coherence.hosting.provision import PACK
from coherence.nodes import CoherenceExtension
from comfy_api.latest import io

DOCS = PACK / "web" / "docs"
NODES = [node.GET_SCHEMA() for node in asyncio.run(CoherenceExtension().get_node_list())]
every_node = pytest.mark.parametrize("schema", NODES, ids=lambda schema: schema.node_id)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#]*)(#[^)]*)?\)")
PICTURE = re.compile(r"^!\[[^\]]{10,}\]\(([^)]*)\)\n\n(?=[\w*\[])", re.MULTILINE)
"""With a text in its place, and one below it."""
NEEDS_NO_ADVICE = {"file", "filename_prefix"} | {"noise_seed", "seed"}
"""Widgets without values that suit a purpose."""
MOST_BYTES = 120_000
SHEETS = {
    "editing_study_peers.jpg",
    "hard_prompts.jpg",
    "methods_study.jpg",
    "methods_study_adapters.jpg",
    "transformer_study.jpg",
    "zs2_study.jpg",
}
"""Contact sheets that pages link to and do not show."""


def page_of(schema: io.Schema) -> str:
    return (DOCS / f"{schema.node_id}.md").read_text("utf-8")


def widgets(schema: io.Schema) -> list[str]:
    """The inputs that a user sets on the node: their kind is one of COMBO, INT, FLOAT, STRING, BOOLEAN."""
    return [item.id for item in schema.inputs if isinstance(item, io.WidgetInput | io.MultiType.Input)]


def section(page: str, heading: str) -> str:
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def advice(page: str) -> dict[str, str]:
    """Of every input, what stands under its name."""
    entries = re.split(r"^- (?=`)", section(page, "Inputs"), flags=re.MULTILINE)[1:]
    return {name: entry for entry in entries for name in re.findall(r"`(\w+)`", entry.partition(":")[0])}


def links(path: Path) -> list[tuple[Path, str]]:
    """File and heading of every link that stays in the pack."""
    found = LINK.findall(path.read_text("utf-8"))
    return [(path.parent / target if target else path, heading.removeprefix("#")) for target, heading in found]


def slugs(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_node
def test_the_page_has_every_part(schema):
    page = page_of(schema)
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert {"Inputs", "Cost", "Troubleshooting"} <= set(headings)
    assert set(headings) & {"The paper", "The papers", "Background"}
    assert ("Presets" in headings) >= bool(set(widgets(schema)) - NEEDS_NO_ADVICE)
    for heading in headings:
        assert len(section(page, heading).strip()) >= 20, heading
    assert page.partition("\n\n")[2].partition("\n\n")[0].count(". ") >= 1, "two sentences say what the node does"


@every_node
def test_the_page_advises_on_each_widget(schema):
    entries = advice(page_of(schema))
    advised = re.compile(r"\*(When to \w+ it|Note):\*")
    assert not [name for name in widgets(schema) if not advised.search(entries.get(name, ""))]


@every_node
def test_the_page_names_no_input_that_is_not_there(schema):
    assert set(advice(page_of(schema))) <= {item.id for item in schema.inputs}


@every_node
def test_the_page_shows_a_picture(schema):
    shown = PICTURE.findall(page_of(schema))
    assert shown
    assert all((DOCS / name).is_file() for name in shown)


@pytest.mark.parametrize("path", [PACK / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target, heading in links(path):
        assert target.is_file(), target
        assert not heading or heading in slugs(target), f"{target.name}#{heading}"


def test_every_picture_belongs_to_a_page_and_is_small():
    pages = [PACK / "README.md", *DOCS.glob("*.md")]
    linked = {target.resolve() for path in pages for target, _ in links(path)}
    pictures = set((DOCS / "pictures").iterdir())
    unused = pictures - linked
    assert not unused
    assert not [path.name for path in pictures if path.stat().st_size > MOST_BYTES and path.name not in SHEETS]
