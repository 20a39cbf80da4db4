"""What a user does in the page beside running a workflow: find a template, a blueprint, help, the cause of an error."""

import re
import urllib.request

import pytest
from coherence.hosting.provision import PACK, PACK_NAME
from coherence.locales.texts import read
from pages import (
    BLANK,
    SET,
    empty_canvas,
    open_template,
    press_run,
    require_no_complaint,
    search_nodes,
    wait_for_template,
)
from shipped import WORKFLOWS

BLUEPRINTS = sorted(path.stem for path in (PACK / "subgraphs").glob("*.json"))
SHORT = {name: name.lower().replace(" ", "_").split("_(")[0] for name in BLUEPRINTS}
PICTURE_LOADED = "card => [...card.querySelectorAll('img')].some(image => image.complete && image.naturalWidth > 0)"
# Draw what a blueprint takes, by the names of its inputs, and what shows what it gives. Only where a socket stands.
WIRE = """() => {
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        app.graph.add(node)
        return node
    }
    const [blueprint] = app.graph.nodes
    const socket = name => blueprint.inputs.findIndex(input => input.name === name)
    const [x, y] = blueprint.pos
    const model = add("CoherenceDemoModel", x - 400, y)
    for (const [output, name] of ["model", "clip", "vae"].entries()) model.connect(output, blueprint, socket(name))
    if (socket("video") >= 0) {
        const clip = add("CoherenceDemoClip", x - 800, y)
        const video = add("CreateVideo", x - 400, y + 200)
        clip.connect(0, video, 0)
        video.connect(0, blueprint, socket("video"))
    }
    for (const [output, { type }] of blueprint.outputs.entries())
        if (type === "VIDEO") blueprint.connect(output, add("SaveVideo", x + 500, y), 0)
        else if (type === "IMAGE") blueprint.connect(output, add("PreviewImage", x + 500, y + 500), 0)
}"""
SMALL = {"width": 128, "height": 128, "frames": 3, "batch_size": 1, "steps": 3, "prompt": "a large red star"}


def open_page(page, server) -> None:
    page.set_viewport_size({"width": 1900, "height": 1000})
    page.goto(server.url)
    page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types?.DependencyNoise")
    page.locator("#splash-loader").wait_for(state="detached")


def scroll_to(page, card) -> None:
    """The browser makes its cards as one scrolls."""
    page.mouse.move(950, 600)
    for _ in range(40):
        if card.count():
            break
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(150)
    card.scroll_into_view_if_needed()


def test_the_template_browser_shows_every_workflow_with_its_picture_and_opens_the_one_clicked(
    blank_page, server, artefacts
):
    page = blank_page
    open_page(page, server)
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(PACK_NAME).click()
    cards = {path.stem: page.get_by_test_id(f"template-workflow-{path.stem}") for path in WORKFLOWS}
    for name, card in cards.items():
        scroll_to(page, card)
        page.wait_for_function(PICTURE_LOADED, arg=card.element_handle())
        assert name in card.inner_text()
    page.screenshot(path=artefacts / "template_browser.png")
    scroll_to(page, cards["zs2_text_to_video"])
    cards["zs2_text_to_video"].click()
    wait_for_template(page, "zs2_text_to_video")
    require_no_complaint(page)


def test_a_nodes_help_with_its_pictures_and_its_complaint_about_an_input_are_read_in_the_page(
    blank_page, server, artefacts
):
    page = blank_page
    path = f"/extensions/{PACK_NAME}/docs/DependencyNoise.md"
    text = (PACK / "web" / "docs" / "DependencyNoise.md").read_text("utf-8")
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        assert answer.read().decode() == text
    open_template(page, server, "zs2_text_to_video")
    page.evaluate("app.canvas.selectNode(app.graph.nodes.find(node => node.type === 'DependencyNoise'))")
    page.get_by_test_id("info-button").click()
    page.get_by_text("Algorithm 1 as printed freezes").wait_for()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]*)\)", text)
    assert {name.rpartition(".")[2] for name in pictures} == {"webp"}
    for name in pictures:
        page.wait_for_function(
            "name => [...document.images].some(image => image.src.endsWith(name) && image.naturalWidth > 0)", arg=name
        )
    page.evaluate(SET, {"kl_schedule": "0:0.01, x"})
    page.get_by_test_id("queue-button").click()
    overlay = page.get_by_test_id("error-overlay")
    overlay.wait_for()
    page.screenshot(path=artefacts / "bad_input.png")
    page.get_by_test_id("error-overlay-see-errors").click()
    complaint = page.get_by_text("Schedule piece 'x': expected frame:value").first
    complaint.wait_for()
    page.screenshot(path=artefacts / "bad_input_explained.png")


def test_the_page_shows_a_node_in_the_users_language(blank_page, server, artefacts):
    texts = read("ja")
    server.post("/settings/Comfy.Locale", "ja")
    try:
        open_page(blank_page, server)
        empty_canvas(blank_page)
        blank_page.evaluate("app.graph.add(LiteGraph.createNode('DependencyNoise'))")
        blank_page.wait_for_timeout(1000)
        blank_page.screenshot(path=artefacts / "japanese.png")
        labels = blank_page.evaluate(
            "() => app.graph.nodes.flatMap(n => [n.title, ...n.widgets.map(w => w.label ?? w.name)])"
        )
    finally:
        server.post("/settings/Comfy.Locale", "en")
    assert texts["nodeDefs/DependencyNoise/display_name"] in labels
    assert texts["nodeDefs/DependencyNoise/inputs/kl_schedule/name"] in labels


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_by_search_inserted_and_run(blank_page, server, artefacts, name):
    page = blank_page
    open_page(page, server)
    empty_canvas(page)
    search_nodes(page, 900, 300).fill(name)
    page.get_by_text("Subgraph Blueprints / Coherence").first.wait_for()
    page.screenshot(path=artefacts / f"blueprint_{SHORT[name]}_found.png")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    page.mouse.click(900, 300)  # the node hangs at the mouse until it is put down
    page.wait_for_function("() => app.graph.nodes.length === 1")
    page.evaluate(WIRE)
    page.evaluate(SET, SMALL)
    page.evaluate("app.canvas.deselectAll()")
    page.keyboard.press(".")  # the view fits all
    press_run(page)
    page.wait_for_function(f"() => ({BLANK})().length === 0")
    page.screenshot(path=artefacts / f"blueprint_{SHORT[name]}_finished.png")
    require_no_complaint(page)
