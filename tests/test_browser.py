"""What a user does in the page: open a template, press Run, look at the clip, read a help page."""

import json
import urllib.request

import pytest
from coherence.hosting.provision import PACK, PACK_NAME

TEMPLATES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
COMPLAINTS = """() => ({
    "missing nodes": app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type),
    "nodes in red": app.graph.nodes.filter(node => node.has_errors).map(node => node.type),
    "errors of the last run": Object.values(app.lastNodeErrors ?? {}),
    "dialogs and error messages": [...document.querySelectorAll("[role=dialog], .p-toast-message-error")]
        .map(element => element.innerText),
})"""
WATCH_THE_RUN = """() => { window.run = new Promise((resolve, reject) => {
    app.api.addEventListener("execution_success", () => resolve())
    app.api.addEventListener("execution_error", event => reject(new Error(event.detail.exception_message)))
}) }"""
PICTURES = """async type => {
    const node = app.graph.nodes.find(node => node.type === type)
    const videos = node.widgets.map(widget => widget.element?.querySelector?.("video")).filter(video => video)
    await Promise.all(videos.map(video => video.readyState || new Promise(resolve => video.onloadedmetadata = resolve)))
    return [...(node.imgs ?? []).map(image => image.naturalWidth), ...videos.map(video => video.videoWidth)]
}"""
OPENED = """types => {
    const opened = (window.app?.graph?.nodes ?? []).map(node => node.type).sort()
    return opened.length === types.length && opened.every((type, index) => type === types[index])
}"""
FEW_STEPS = """() => app.graph.nodes.flatMap(node => node.widgets ?? [])
    .filter(widget => widget.name === "steps").forEach(widget => { widget.value = 4 })"""
IN_VIEW = "() => app.graph.nodes.every(node => app.canvas.visible_nodes.includes(node))"


@pytest.fixture
def page(blank_page):
    """A template's address loads the frontend itself."""
    return blank_page


def open_template(page, server, name: str) -> None:
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8"))
    types = [node["type"] for node in workflow["nodes"]]
    page.goto(f"{server.url}/?template={name}&source={PACK_NAME}")
    page.wait_for_function(OPENED, arg=sorted(types))
    page.locator("#splash-loader").wait_for(state="detached")
    page.wait_for_timeout(2000)  # the canvas fits the view to the graph, with an animation


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_whole_and_readable_and_no_nodes_overlap(page, server, artefacts, name):
    page.set_viewport_size({"width": 1900, "height": 1000})
    open_template(page, server, name)
    page.screenshot(path=artefacts / f"{name}_opened.png")
    assert not any(page.evaluate(COMPLAINTS).values()), page.evaluate(COMPLAINTS)
    assert page.evaluate("app.canvas.ds.scale") > 0.572, "at a smaller scale the canvas draws no text"
    assert page.evaluate(IN_VIEW)
    boxes = page.evaluate("app.graph.nodes.map(node => [node.title, ...node.getBounding()])")
    for index, (title, x, y, width, height) in enumerate(boxes):
        for other, x2, y2, width2, height2 in boxes[:index]:
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
            assert apart, f"{title!r} overlaps {other!r}"


def test_run_makes_the_clip_and_shows_it(page, server, artefacts):
    page.set_viewport_size({"width": 1900, "height": 1000})
    open_template(page, server, "zs2_text_to_video")
    page.evaluate(FEW_STEPS)  # another test runs the workflows as they ship
    page.evaluate(WATCH_THE_RUN)
    page.get_by_test_id("queue-button").click()
    page.evaluate("window.run")
    page.wait_for_timeout(2000)  # the pictures load
    page.screenshot(path=artefacts / "zs2_text_to_video_finished.png")
    assert not any(page.evaluate(COMPLAINTS).values()), page.evaluate(COMPLAINTS)
    for type_, width in (("SaveAnimatedWEBP", 512), ("SaveVideo", 512), ("PreviewImage", 1440)):
        assert page.evaluate(PICTURES, type_) == [width], type_
    figures = "app.graph.nodes.find(node => node.type === 'PreviewAny').widgets.map(widget => String(widget.value))"
    assert "neighbour_correlation" in "".join(page.evaluate(figures))


def test_a_nodes_help_page_opens_in_the_page(page, server):
    path = f"/extensions/{PACK_NAME}/docs/DependencyNoise.md"
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        assert answer.read().decode() == (PACK / "web" / "docs" / "DependencyNoise.md").read_text("utf-8")
    open_template(page, server, "zs2_text_to_video")
    page.evaluate("app.canvas.selectNode(app.graph.nodes.find(node => node.type === 'DependencyNoise'))")
    page.get_by_test_id("info-button").click()
    page.get_by_text("Algorithm 1 as printed freezes").wait_for()
