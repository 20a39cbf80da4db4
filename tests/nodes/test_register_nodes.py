"""The register's nodes: their faces, what they hand on, and a run through the server."""

import io as files
import json

import comfy.samplers
import pytest
import torch
from coherence.attention.registry import AttentionRegistry, RegistryError
from coherence.attention.sites import NoSuchSiteError
from coherence.client.errors import PromptError
from coherence.client.server import outputs
from coherence.demo.model import load_model
from coherence.files.registry_file import SUFFIX, from_json, to_json
from coherence.hosting.provision import PACK
from coherence.nodes.entropy_register import NODES, EntropyRegister, ReselectAttentionLayers, SelectAttentionLayers
from coherence.nodes.map_preview import AttentionMapPreview
from coherence.nodes.perturbation import PerturbAttention
from PIL import Image
from register_runs import demo_conditioning, demo_start
from shipped import inputs_of

RANKING = {"kind": "all", "select": "highest", "count": 1, "percent": 50.0}
START = dict.fromkeys(("model", "conditioning", "noise", "sigmas", "latent_image"))
FACES = {
    "EntropyRegister": (
        START | RANKING | {"measure_steps": "0", "precision": "exact", "live": False, "per_head": False},
        {"registry": "ATTENTION_REGISTRY", "chart": "IMAGE", "report": "STRING"},
    ),
    "SelectAttentionLayers": ({"model": None, "layers": "middle"}, {"registry": "ATTENTION_REGISTRY"}),
    "ReselectAttentionLayers": (
        {"registry": None, **RANKING},
        {"registry": "ATTENTION_REGISTRY", "chart": "IMAGE"},
    ),
    "SaveAttentionRegistry": ({"registry": None, "filename_prefix": "attention/registry"}, {}),
    "LoadAttentionRegistry": ({"file": None}, {"registry": "ATTENTION_REGISTRY"}),
    "AttentionMapPreview": (START | {"layer": "middle", "step": 0, "threshold": 1.0}, {"maps": "IMAGE"}),
}
COMBOS = {
    "kind": ["all", "spatial", "temporal", "joint"],
    "select": ["highest", "lowest"],
    "precision": ["exact", "sampled"],
}


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def measured(unet):
    """Registry, chart and report of the demo model."""
    return register(unet).args


def run_inputs(model) -> dict:
    start = demo_start(model)
    return {
        "model": model,
        "conditioning": start.conditioning,
        "noise": start.noise,
        "sigmas": start.sigmas,
        "latent_image": start.latent,
    }


def register(model, **options):
    options = {**RANKING, "measure_steps": "0", "precision": "exact", **options}
    with torch.inference_mode():
        return EntropyRegister.execute(**run_inputs(model), **options)


@pytest.mark.parametrize("node", [*NODES, AttentionMapPreview], ids=lambda node: node.__name__)
def test_face_of_the_node(node):
    schema = node.GET_SCHEMA()
    inputs, results = FACES[schema.node_id]
    assert {entry.id: getattr(entry, "default", None) for entry in schema.inputs} == inputs
    assert {output.display_name or output.id: output.io_type for output in schema.outputs} == results
    assert {e.id: e.options for e in schema.inputs if e.id in COMBOS} == {
        k: v for k, v in COMBOS.items() if k in inputs
    }
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    assert schema.description
    assert schema.search_aliases


def test_the_report_lists_every_layer_with_its_figures_and_is_the_registry(unet, measured):
    registry, _, report = measured
    assert isinstance(registry, AttentionRegistry)
    assert from_json(report) == registry
    content = json.loads(report)
    assert (content["model"], content["network"]) == ("BaseModel", "UNetModel")
    assert content["measurement"]["sigmas"] == pytest.approx([14.6146], abs=1e-3)
    sites = content["sites"]
    assert [site["kind"] for site in sites] == ["spatial", "cross"] * 7
    assert {len(site) for site in sites} == {15}
    best = max((site for site in sites if site["kind"] == "spatial"), key=lambda site: site["entropy"])
    assert [site["name"] for site in sites if site["selected"]] == [best["name"]]


def test_the_chart_grows_with_the_layers_and_marks_the_selected_ones(measured):
    registry, chart, _ = measured
    assert chart.shape[0] == 1
    assert chart.shape[3] == 3
    assert min(chart.shape[1:3]) > 900
    assert 0 <= chart.min() < chart.max() <= 1
    other = ReselectAttentionLayers.execute(registry, "all", "lowest", 0, 50)
    assert other[1].shape == chart.shape
    assert (other[1] != chart).any()
    assert len(other[0].selected) == 3


def test_layers_are_selected_by_name_without_cross_attention(unet):
    (registry,) = SelectAttentionLayers.execute(unet, "input, middle").args
    assert registry.selected == ("input.1.attn1", "input.3.attn1", "middle.0.attn1")
    assert from_json(to_json(registry)) == registry
    with pytest.raises(NoSuchSiteError, match=r"'outputs' matches no .*output\.3\.attn1"):
        SelectAttentionLayers.execute(unet, "outputs")
    with pytest.raises(RegistryError, match="named, not measured"):
        ReselectAttentionLayers.execute(registry, **RANKING)


def test_a_kind_that_the_model_lacks_is_refused_with_those_it_has(unet):
    with pytest.raises(RegistryError, match="no temporal self-attention layer, only cross, spatial"):
        register(unet, kind="temporal")


def test_maps_are_drawn_one_picture_for_each_frame(unet):
    with torch.inference_mode():
        (maps,) = AttentionMapPreview.execute(**run_inputs(unet), layer="middle", step=0, threshold=1.0).args
    assert maps.shape == (3, 768, 1440, 3)
    assert (maps[0] != maps[1]).any()


# Through the server -------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt(to_api):
    return to_api(PACK / "workflows" / "entropy_register.json")


@pytest.mark.slow
def test_the_workflow_draws_its_charts_and_its_saved_registry_can_be_loaded(server, prompt):
    entry = server.queue(prompt)
    pictures = [
        Image.open(files.BytesIO(server.download(file))).size
        for file in outputs(entry, "temp")
        if file["filename"].endswith(".png")
    ]
    assert len(pictures) == 3
    assert min(min(size) for size in pictures) > 700
    (saved,) = (file for file in outputs(entry) if file["filename"].endswith(SUFFIX))
    registry = from_json(server.download(saved).decode())
    assert (len(registry.layers), len(registry.selected)) == (14, 3)
    load = {"class_type": "LoadAttentionRegistry", "inputs": {"file": f"{saved['subfolder']}/{saved['filename']}"}}
    save = {"class_type": "SaveAttentionRegistry", "inputs": {"registry": ["load", 0], "filename_prefix": "again"}}
    (again,) = outputs(server.queue({"load": load, "save": save}))
    assert from_json(server.download(again).decode()) == registry


@pytest.mark.parametrize(
    ("class_type", "inputs", "complaint"),
    [
        ("EntropyRegister", {"measure_steps": "5, 20"}, "step 20 does not exist, the run has 20 steps: 0 to 19"),
        ("EntropyRegister", {"kind": "joint"}, "no joint self-attention layer"),
        ("ReselectAttentionLayers", {"count": 9}, "9 layers asked for, but the model has 7"),
        ("SaveAttentionRegistry", {"filename_prefix": "../../x"}, "outside the output folder"),
        ("AttentionMapPreview", {"layer": "*"}, "expected one layer, but '\\*' names 7"),
    ],
)
def test_a_mistake_is_explained_at_its_node(server, prompt, class_type, inputs, complaint):
    inputs_of(prompt, class_type).update(inputs)
    with pytest.raises(PromptError, match=rf"(?s)\({class_type}\).*{complaint}"):
        server.queue(prompt)


def test_a_registry_outside_the_output_folder_is_refused_before_anything_runs(server):
    (server.base / f"secret{SUFFIX}").write_text("{}", "utf-8")
    load = {"class_type": "LoadAttentionRegistry", "inputs": {"file": f"../secret{SUFFIX}"}}
    save = {"class_type": "SaveAttentionRegistry", "inputs": {"registry": ["load", 0], "filename_prefix": "x"}}
    with pytest.raises(PromptError, match="expected a saved registry in the output folder"):
        server.queue({"load": load, "save": save})


def test_a_map_is_previewed_from_the_same_start_as_is_measured() -> None:
    preview, register = (
        [(item.id, item.as_dict()) for item in node.GET_SCHEMA().inputs[:5]]
        for node in (AttentionMapPreview, EntropyRegister)
    )
    assert preview == register


def test_layers_keep_the_entropy_of_each_head_and_step(unet):
    by_step = [register(unet, measure_steps=str(n)).args[0] for n in (0, 2)]
    both = register(unet, measure_steps="0, 2").args[0]
    for layer, first, last in zip(both.layers, by_step[0].layers, by_step[1].layers, strict=True):
        assert layer.figures.by_step == pytest.approx((first.figures.entropy, last.figures.entropy), abs=1e-6)
        assert sum(layer.figures.heads) / layer.heads == pytest.approx(layer.figures.entropy, abs=1e-6)
        assert len(layer.figures.heads) == layer.heads


def test_heads_are_selected_one_by_one_and_charted(unet):
    registry, chart, report = register(unet, per_head=True, count=5, live=True, measure_steps="0, 2").args
    heads = sorted(
        ((value, layer.name, head) for layer in registry.layers if layer.kind == "spatial"
         for head, value in enumerate(layer.figures.heads)), reverse=True
    )  # fmt: skip
    chosen = {(layer.name, head) for layer in registry.layers for head in layer.selected_heads or ()}
    assert chosen == {(name, head) for _, name, head in heads[:5]}
    assert from_json(report) == registry
    plain = register(unet, measure_steps="0, 2").args[1]
    assert chart.shape[1] > plain.shape[1]
    again = ReselectAttentionLayers.execute(registry, "all", "lowest", 2, 50.0).args[0]
    assert sum(len(layer.selected_heads or ()) for layer in again.layers) == 2
    with pytest.raises(RegistryError, match=r"count: 999 heads asked for, but the model has \d+ heads"):
        register(unet, per_head=True, count=999)


def test_a_live_registry_at_one_step_is_the_fixed_one(unet):
    fixed, live = (register(unet, live=each, count=2).args[0] for each in (False, True))
    assert fixed.selected == live.selected
    for steps, same in ((1, True), (3, False)):
        clips = [perturbed_clip(unet, registry, steps) for registry in (fixed, live)]
        assert torch.equal(*clips) == same


def test_a_live_run_does_not_depend_on_how_calls_are_split(unet):
    registry = register(unet, live=True, per_head=True, count=4).args[0]
    whole = perturbed_clip(unet, registry, 3)
    split = unet.clone()
    split.model_options["sampler_calc_cond_batch_function"] = one_by_one
    torch.testing.assert_close(perturbed_clip(split, registry, 3), whole, rtol=1e-4, atol=1e-4)


def one_by_one(given: dict) -> list:
    options = {name: each for name, each in given["model_options"].items() if not name.startswith("sampler_calc")}
    conds = ([each] for each in given["conds"])
    return [
        comfy.samplers.calc_cond_batch(given["model"], each, given["input"], given["sigma"], options)[0]
        for each in conds
    ]


def perturbed_clip(model, registry, steps: int) -> torch.Tensor:
    start = demo_start(model, steps)
    with torch.inference_mode():
        (perturbed,) = PerturbAttention.execute(model, registry, "uniform").args
        guider = comfy.samplers.CFGGuider(perturbed)
        guider.set_conds(start.conditioning, demo_conditioning(2)[1:])
        guider.set_cfg(3.0)
        noise = start.noise.generate_noise(start.latent)
        return guider.sample(
            noise, start.latent["samples"], comfy.samplers.sampler_object("euler"), start.sigmas, seed=3
        )
