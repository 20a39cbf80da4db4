"""Saved workflows become prompts: as the canvas would do it, seen by the browser's own ``graphToPrompt``.

The pack's own are compared where the page has them open anyway: in ``workflows/test_as_shipped.py``.
"""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
from coherence.client.errors import ComfyError
from coherence.client.workflow import to_prompt
from comfyui_version import __version__
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import new_page, without_titles

DRAWN_BY_SCRIPTS = {"CustomCombo", "ImageCompare", "Load3D", "Preview3D", "SaveGLB"}
"""Core nodes with widgets that exist in the frontend's code alone: no object_info tells of them."""


def templates() -> list[tuple[str, dict]]:
    """ComfyUI's own example workflows, as its frontend lists them."""
    folders = []
    for name in ("json", "core", "media_image", "media_video", "media_other"):
        spec = importlib.util.find_spec(f"comfyui_workflow_templates_{name}")
        folders += spec.submodule_search_locations if spec else []
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.json"))
    read = [(path.name, json.loads(path.read_text("utf-8"))) for path in files]
    return [(name, content) for name, content in read if isinstance(content, dict) and "nodes" in content]


def all_nodes(workflow: dict) -> list[dict]:
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    return [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]


def features(workflow: dict, object_info: dict) -> set[str]:
    nodes = all_nodes(workflow)
    types = {node["type"] for node in nodes}
    specs = [
        spec for kind in types & object_info.keys() for spec in object_info[kind]["input"].get("required", {}).values()
    ]
    found = types & {"Reroute", "PrimitiveNode", "MarkdownNote", "Note"}
    found |= {{2: "muted", 4: "bypassed"}.get(node.get("mode"), "active") for node in nodes}
    found |= {"subgraph"} if workflow.get("definitions", {}).get("subgraphs") else set()
    found |= {"DynamicCombo"} if any(spec[0] == "COMFY_DYNAMICCOMBO_V3" for spec in specs) else set()
    found |= {"seed"} if types & {"KSampler", "RandomNoise", "KSamplerAdvanced"} else set()
    found |= {"upload"} if types & {"LoadImage", "LoadVideo", "LoadAudio"} else set()
    return found


WANTED = {
    "Reroute",
    "PrimitiveNode",
    "Note",
    "MarkdownNote",
    "muted",
    "bypassed",
    "subgraph",
    "DynamicCombo",
    "seed",
    "upload",
}
TO_PROMPT = "async workflow => { await app.loadGraphData(workflow); return (await app.graphToPrompt()).output }"


@pytest.fixture(scope="module")
def page(browser_context, server):
    """ComfyUI's page, into which the tests load their workflows."""
    opened = new_page(browser_context)
    opened.goto(server.url)
    opened.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler")
    yield opened
    opened.close()


@pytest.mark.skipif(
    __version__.startswith("0.27."),
    reason="ComfyUI 0.27's own page makes other prompts than later ones, which to_prompt follows: "
    "it counts an audio player as an input, and numbers nodes of nested subgraphs otherwise",
)
def test_comfyuis_own_workflows_convert_as_in_the_browser(page, object_info):
    seen = dict.fromkeys(WANTED, 0)
    different = {}
    for name, workflow in templates():
        types = {node["type"] for node in all_nodes(workflow)}
        new = [feature for feature in features(workflow, object_info) & WANTED if seen[feature] < 3]
        if types & DRAWN_BY_SCRIPTS or not new:
            continue
        try:
            ours = to_prompt(workflow, object_info)
        except ComfyError:
            continue  # nodes of other packs
        for feature in features(workflow, object_info) & WANTED:
            seen[feature] += 1
        if without_titles(ours) != without_titles(page.evaluate(TO_PROMPT, workflow)):
            different[name] = sorted(new)
    assert all(seen.values()), seen
    assert different == {}


CHANGE_SHOWN_WIDGETS = """async workflow => {
    await app.loadGraphData(workflow)
    const node = app.graph.nodes.find(node => node.isSubgraphNode?.() && node.widgets.length > 1)
    for (const widget of node.widgets) {
        if (typeof widget.value === "string" && widget.type !== "combo") widget.value = "changed outside"
        if (typeof widget.value === "number") widget.value += 8
    }
    const { workflow: saved, output } = await app.graphToPrompt()
    return [saved, output]
}"""


def test_values_set_on_the_outside_of_a_subgraph_reach_its_inside(page, object_info):
    types = [(workflow, {node["type"] for node in all_nodes(workflow)}) for _, workflow in templates()]
    workflow = next(
        workflow
        for workflow, kinds in types
        if "subgraph" in features(workflow, object_info) and "CLIPTextEncode" in kinds and not kinds & DRAWN_BY_SCRIPTS
    )
    saved, theirs = page.evaluate(CHANGE_SHOWN_WIDGETS, workflow)
    assert "changed outside" in json.dumps(theirs)
    assert without_titles(to_prompt(saved, object_info)) == without_titles(theirs)


def node(node_id: int, kind: str, inputs: list, outputs: list[str], values: list, **more: object) -> dict:
    """``inputs``: (name, type, link)."""
    slots = [dict(zip(("name", "type", "link"), entry, strict=True)) for entry in inputs]
    sockets = [{"name": kind, "type": kind} for kind in outputs]
    return {
        "id": node_id,
        "type": kind,
        "mode": 0,
        "inputs": slots,
        "outputs": sockets,
        "widgets_values": values,
    } | more


TEXT_TO_IMAGE = {
    "nodes": [
        node(1, "CheckpointLoaderSimple", [], ["MODEL", "CLIP", "VAE"], ["any.safetensors"]),
        node(2, "CLIPTextEncode", [("clip", "CLIP", 2)], ["CONDITIONING"], ["a red star"], title="What to draw"),
        node(3, "CLIPTextEncode", [("clip", "CLIP", 3)], ["CONDITIONING"], [""]),
        node(4, "EmptyLatentImage", [], ["LATENT"], [128, 64, 8]),
        node(
            5,
            "KSampler",
            [
                ("model", "MODEL", 1),
                ("positive", "CONDITIONING", 4),
                ("negative", "CONDITIONING", 5),
                ("latent_image", "LATENT", 6),
            ],
            ["LATENT"],
            [42, "randomize", 20, 5.0, "euler", "normal", 1.0],
        ),
        node(6, "VAEDecode", [("samples", "LATENT", 7), ("vae", "VAE", 8)], ["IMAGE"], []),
        node(7, "SaveImage", [("images", "IMAGE", 9)], [], ["picture"]),
        node(8, "Note", [], [], ["a note"]),
        node(9, "MarkdownNote", [], [], ["# a note"]),
    ],
    "links": [
        [1, 1, 0, 5, 0, "MODEL"],
        [2, 1, 1, 2, 0, "CLIP"],
        [3, 1, 1, 3, 0, "CLIP"],
        [4, 2, 0, 5, 1, "CONDITIONING"],
        [5, 3, 0, 5, 2, "CONDITIONING"],
        [6, 4, 0, 5, 3, "LATENT"],
        [7, 5, 0, 6, 0, "LATENT"],
        [8, 1, 2, 6, 1, "VAE"],
        [9, 6, 0, 7, 0, "IMAGE"],
    ],
    "groups": [{"title": "a group", "bounding": [0, 0, 10, 10]}],
}


def test_widgets_links_and_titles_take_their_places(object_info):
    prompt = to_prompt(TEXT_TO_IMAGE, object_info)
    assert prompt.keys() == {"1", "2", "3", "4", "5", "6", "7"}
    assert prompt["5"]["inputs"] == {
        "seed": 42,
        "steps": 20,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        "model": ["1", 0],
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
    }
    assert [prompt[key]["_meta"]["title"] for key in "23"] == ["What to draw", "CLIP Text Encode (Prompt)"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(links=st.lists(st.integers(1, 9), max_size=6))
def test_reroutes_change_nothing(object_info, links):
    workflow = copy.deepcopy(TEXT_TO_IMAGE)
    for number, link_id in enumerate(links):
        link = next(link for link in workflow["links"] if link[0] == link_id)
        reroute, new_link = 100 + number, 100 + number
        workflow["nodes"].append(node(reroute, "Reroute", [("", "*", new_link)], ["*"], []))
        workflow["links"].append([new_link, link[1], link[2], reroute, 0, link[5]])
        link[1:3] = [reroute, 0]
    assert to_prompt(workflow, object_info) == to_prompt(TEXT_TO_IMAGE, object_info)


def changed(node_id: int, **change: object) -> dict:
    workflow = copy.deepcopy(TEXT_TO_IMAGE)
    next(node for node in workflow["nodes"] if node["id"] == node_id).update(change)
    return workflow


def test_a_muted_node_goes_with_the_links_to_it(object_info):
    prompt = to_prompt(changed(4, mode=2), object_info)
    assert "4" not in prompt
    assert "latent_image" not in prompt["5"]["inputs"]


def test_a_bypassed_node_passes_on_what_fits(object_info):
    prompt = to_prompt(changed(5, mode=4), object_info)
    assert "5" not in prompt
    assert prompt["6"]["inputs"]["samples"] == ["4", 0]
    prompt = to_prompt(changed(6, mode=4), object_info)
    assert "images" not in prompt["7"]["inputs"], "no input of VAEDecode is a picture"


def test_a_primitive_gives_its_value(object_info):
    workflow = changed(4, inputs=[{"name": "width", "type": "INT", "link": 50, "widget": {"name": "width"}}])
    workflow["nodes"].append(node(50, "PrimitiveNode", [], ["INT"], [256, "fixed"]))
    workflow["links"].append([50, 50, 0, 4, 0, "INT"])
    assert to_prompt(workflow, object_info)["4"]["inputs"] == {"width": 256, "height": 64, "batch_size": 8}


def test_a_list_from_a_primitive_is_a_value_and_no_link(object_info):
    workflow = changed(4, inputs=[{"name": "width", "type": "CURVE", "link": 50, "widget": {"name": "width"}}])
    workflow["nodes"].append(node(50, "PrimitiveNode", [], ["CURVE"], [[[0, 0], [1, 1]]]))
    workflow["links"].append([50, 50, 0, 4, 0, "CURVE"])
    given = to_prompt(workflow, object_info)["4"]["inputs"]["width"]
    assert given == {"__type__": "CURVE", "__value__": [[0, 0], [1, 1]]}


@pytest.mark.parametrize("change", [{"inputs": None}, {"widgets_values": None}], ids=["no inputs", "no values"])
def test_what_damaged_workflows_lack_is_taken_for_empty(object_info, change):
    workflow = changed(4, **change)
    workflow["nodes"] = [each for each in workflow["nodes"] if each["id"] != 2]  # its links stay
    workflow["nodes"].append(node(50, "PrimitiveNode", [], ["INT"], []))
    prompt = to_prompt(workflow, object_info)
    assert "positive" not in prompt["5"]["inputs"]
    assert prompt["5"]["inputs"]["negative"] == ["3", 0]


PAIRS = [("SetNode", "GetNode"), ("easy setNode", "easy getNode")]


def with_set_and_get(setter: str = "SetNode", getter: str = "GetNode", name: str = "the latent") -> dict:
    """The latent goes to the sampler by a pair of nodes of one name; and there are notes and switches of packs."""
    workflow = copy.deepcopy(TEXT_TO_IMAGE)
    workflow["nodes"] += [
        node(20, setter, [("LATENT", "LATENT", 20)], ["*"], ["the latent"]),
        node(21, getter, [], ["LATENT"], [name]),
        node(22, "Fast Groups Bypasser (rgthree)", [], ["OPT_CONNECTION"], []),
        node(23, "Label (rgthree)", [], [], []),
    ]
    link = next(link for link in workflow["links"] if link[0] == 6)
    workflow["links"].append([20, *link[1:3], 20, 0, "LATENT"])
    link[1:3] = [21, 0]
    return workflow


@pytest.mark.parametrize(("setter", "getter"), PAIRS)
def test_set_and_get_nodes_and_switches_of_packs_change_nothing(object_info, setter, getter):
    assert to_prompt(with_set_and_get(setter, getter), object_info) == to_prompt(TEXT_TO_IMAGE, object_info)


def test_a_get_node_in_a_subgraph_finds_the_set_node_around_it(object_info):
    workflow = with_set_and_get()
    inside = [workflow["nodes"].pop(next(i for i, node in enumerate(workflow["nodes"]) if node["id"] == 21))]
    inside[0]["outputs"][0]["links"] = [1]
    out = {"id": 1, "origin_id": 21, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "LATENT"}
    graph = {"id": "sub", "nodes": inside, "links": [out], "inputs": [], "outputs": [{"name": "LATENT"}]}
    workflow["definitions"] = {"subgraphs": [graph]}
    workflow["nodes"].append(node(30, "sub", [], ["LATENT"], [], properties={}))
    next(link for link in workflow["links"] if link[0] == 6)[1:3] = [30, 0]
    assert to_prompt(workflow, object_info) == to_prompt(TEXT_TO_IMAGE, object_info)


def test_a_get_node_without_its_set_node_is_named(object_info):
    with pytest.raises(ComfyError, match=r"Node 21 \(GetNode\) asks for 'another', and no SetNode has that name"):
        to_prompt(with_set_and_get(name="another"), object_info)


def test_a_loop_of_links_is_called_so(object_info):
    workflow = with_set_and_get()
    next(link for link in workflow["links"] if link[0] == 20)[1:3] = [21, 0]
    with pytest.raises(ComfyError, match="form a loop"):
        to_prompt(workflow, object_info)


def test_links_that_only_the_page_knows_are_to_be_exported(object_info):
    workflow = copy.deepcopy(TEXT_TO_IMAGE)
    workflow["nodes"].append(node(20, "Anything Everywhere3", [("anything", "*", 1)], [], []))
    with pytest.raises(ComfyError, match=r"Only ComfyUI's page knows what Anything Everywhere3 is .* export it as API"):
        to_prompt(workflow, object_info | {"Anything Everywhere3": {"input": {}}})


def test_values_that_an_older_version_did_not_save_are_the_defaults(object_info):
    assert to_prompt(changed(4, widgets_values=[128]), object_info)["4"]["inputs"] == {
        "width": 128,
        "height": 512,
        "batch_size": 1,
    }


def test_values_may_be_saved_by_name(object_info):
    values = {"batch_size": 3, "height": 72, "width": 96}
    assert to_prompt(changed(4, widgets_values=values), object_info)["4"]["inputs"] == values


def test_unknown_nodes_are_named(object_info):
    with pytest.raises(ComfyError, match=r"does not know: NoSuchNode, OtherNode.* on the canvas alone, .* as API"):
        to_prompt({"nodes": [node(1, "OtherNode", [], [], []), node(2, "NoSuchNode", [], [], [])]}, object_info)
    assert to_prompt({"nodes": [node(1, "NoSuchNode", [], [], [], mode=2)]}, object_info) == {}


def test_a_prompt_in_api_format_is_no_workflow(object_info):
    with pytest.raises(ComfyError, match="not a workflow in UI format"):
        to_prompt(to_prompt(TEXT_TO_IMAGE, object_info), object_info)
