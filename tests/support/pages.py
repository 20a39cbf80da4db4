"""What tests do and see in ComfyUI's page, with playwright's synchronous interface."""

import json
from contextlib import contextmanager

import pytest
from coherence.hosting.browser import CHROMIUM_FLAGS, find_browser
from coherence.hosting.provision import PACK, PACK_NAME

COMPLAINTS = """() => ({
    "missing nodes": app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type),
    "nodes in red": app.graph.nodes.filter(node => node.has_errors).map(node => node.type),
    "links to nowhere": [...app.graph.links.values()]
        .filter(link => !app.graph.getNodeById(link.origin_id) || !app.graph.getNodeById(link.target_id))
        .map(link => link.id),
    "errors of the last run": Object.values(app.lastNodeErrors ?? {}),
    "dialogs and error messages": [...document.querySelectorAll("[role=dialog], .p-toast-message-error")]
        .map(element => element.innerText),
})"""
WATCH_THE_RUN = """() => { window.run = new Promise((resolve, reject) => {
    app.api.addEventListener("execution_success", event => resolve(event.detail.prompt_id))
    app.api.addEventListener("execution_error", event => reject(new Error(event.detail.exception_message)))
    setTimeout(() => reject(new Error("the run does not end")), 600_000)
}) }"""
# What nodes that show something lack: pictures and videos that have arrived and lie inside the node, or a text.
BLANK = """() => app.graph.nodes.filter(node => node.mode === 0).map(node => {
    const name = `${node.title} (${node.type})`
    const videos = (node.widgets ?? []).map(widget => widget.element?.querySelector?.("video")).filter(video => video)
    const bottom = app.canvas.canvas.getBoundingClientRect().top
        + (node.pos[1] + node.size[1] + app.canvas.ds.offset[1]) * app.canvas.ds.scale
    if (["PreviewImage", "SaveAnimatedWEBP", "SaveImage"].includes(node.type))
        return node.imgs?.length && node.imgs.every(image => image.naturalWidth) ? "" : `${name}: no picture`
    if (node.type === "SaveVideo") {
        if (!videos.some(video => video.videoWidth)) return `${name}: no video`
        const end = videos[0].getBoundingClientRect().bottom
        if (end > innerHeight) return `${name}: the video ends below the window`
        return end - bottom > 2 ? `${name}: the video ends ${end - bottom} pixels below its node` : ""
    }
    if (node.type === "PreviewAny")
        return node.widgets.some(widget => String(widget.value).length > 20) ? "" : `${name}: no text`
    return ""
}).filter(complaint => complaint)"""
OPENED = """types => {
    const opened = (window.app?.graph?.nodes ?? []).map(node => node.type).sort()
    return opened.length === types.length && opened.every((type, index) => type === types[index])
}"""
SET = """values => app.graph.nodes.flatMap(node => node.widgets ?? [])
    .filter(widget => widget.name in values).forEach(widget => { widget.value = values[widget.name] })"""
AS_PROMPT = "async () => (await app.graphToPrompt()).output"
DRAW = "() => app.canvas.draw(true, true)"
IN_VIEW = "() => app.graph.nodes.every(node => app.canvas.visible_nodes.includes(node))"
EXTENT = """() => {
    const boxes = [...app.graph.nodes.map(node => [...node.getBounding()]),
        ...app.graph.groups.map(group => [...group.pos, ...group.size])]
    return [Math.min(...boxes.map(box => box[0])), Math.min(...boxes.map(box => box[1])),
        Math.max(...boxes.map(box => box[0] + box[2])), Math.max(...boxes.map(box => box[1] + box[3]))]
}"""
BOXES = "() => app.graph.nodes.map(node => [node.title, ...node.getBounding()])"


@contextmanager
def browser_for(server):
    """A browser of a user who knows the server's page already."""
    from playwright.sync_api import sync_playwright

    executable = find_browser()
    if executable is None:
        pytest.fail("this test drives a browser and none is installed: run `python3 host.py test`, which gets one")
    server.post("/settings/Comfy.TutorialCompleted", True)  # else a dialog covers the page
    server.post("/settings/LiteGraph.Canvas.MaximumFps", 5)  # nobody watches, and each frame is drawn by a CPU
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


def new_page(context):
    """Of a browser's context."""
    opened = context.new_page()
    opened.set_viewport_size({"width": 1600, "height": 1000})
    opened.set_default_timeout(120_000)  # milliseconds: machines that run tests may be busy
    return opened


def forget(page, server) -> None:
    """Take from the page's context what the server's page has stored there; its code stays in the cache."""
    kinds = "cookies,local_storage,indexeddb,service_workers,cache_storage"
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": kinds})
    session.detach()


def wait_for_template(page, name: str) -> None:
    """Return when the page shows the nodes of a template, its view fitted to them."""
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8"))
    page.wait_for_function(OPENED, arg=sorted(node["type"] for node in workflow["nodes"]))
    page.locator("#splash-loader").wait_for(state="detached")
    page.wait_for_timeout(2000)  # the canvas fits the view to the graph, with an animation


def open_template(page, server, name: str) -> None:
    """Open a template by its address, which loads the frontend itself."""
    page.set_viewport_size({"width": 1900, "height": 1000})
    page.goto(f"{server.url}/?template={name}&source={PACK_NAME}")
    wait_for_template(page, name)


def load_workflow(page, workflow: dict) -> None:
    """Load a workflow into a page that has the frontend already."""
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.wait_for_function(OPENED, arg=sorted(node["type"] for node in workflow["nodes"]))
    page.evaluate(DRAW)


def without_titles(prompt: dict) -> dict:
    """The frontend translates titles; they do not change what runs."""
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}


def fit_view(page) -> None:
    """As the key "." does."""
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(700)  # with an animation


def require_readable(page) -> None:
    """The workflow is no larger than what the canvas draws with text, in the window that :func:`open_template` sets."""
    left, top, right, bottom = page.evaluate(EXTENT)
    assert right - left <= 2480, f"{right - left} wide: fitted to the window it would be drawn without text"
    assert bottom - top <= 1355, f"{bottom - top} high: fitted to the window it would be drawn without text"


def empty_canvas(page) -> None:
    """Wait for the workflow that a new user finds, which else comes later, and take it away."""
    page.wait_for_function("() => app.graph.nodes.length > 1")
    page.evaluate("app.graph.clear()")


def search_nodes(page, x: int, y: int):
    """Double-click the empty canvas until it offers its search for nodes; the search's field.

    On a busy machine the two clicks may reach the page so far apart that they are no double click to it.
    """
    from playwright.sync_api import TimeoutError as TooLate

    field = page.get_by_placeholder("Add a node")
    for _ in range(20):
        page.mouse.dblclick(x, y)
        try:
            field.wait_for(timeout=6_000)
        except TooLate:
            continue
        return field
    raise AssertionError("twenty double clicks on the canvas opened no search for nodes")


def press_run(page) -> str:
    """Press the page's button and wait until all has run; the prompt's id."""
    page.evaluate(WATCH_THE_RUN)
    page.get_by_test_id("queue-button").click()
    return page.evaluate("window.run")


def require_no_complaint(page) -> None:
    """No node is missing or red, no dialog and no message of an error is open."""
    complaints = page.evaluate(COMPLAINTS)
    assert not any(complaints.values()), complaints


def require_prompt(page, prompt: dict) -> None:
    """The page makes this prompt of what it shows."""
    assert without_titles(page.evaluate(AS_PROMPT)) == without_titles(prompt)


def require_nodes_apart(page) -> None:
    """No node covers a part of another."""
    boxes = page.evaluate(BOXES)
    for index, (title, x, y, width, height) in enumerate(boxes):
        for other, x2, y2, width2, height2 in boxes[:index]:
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
            assert apart, f"{title!r} overlaps {other!r}"
