"""FlowEdit's face: what it promises, and what it refuses."""

import pytest
import torch
from coherence.attention.registry import RegistryError
from coherence.demo.flow import as_flow
from coherence.demo.model import load_model
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.flow_edit import FlowEdit
from comfy.nested_tensor import NestedTensor
from comfy.samplers import calculate_sigmas

FACE = "model source target negative latent_image sigmas source_cfg target_cfg skip_steps averages seed registry"


def prompt(seed: int) -> list:
    return [[torch.randn(1, 32, 128, generator=torch.Generator().manual_seed(seed)), {}]]


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def flow(unet):
    return as_flow(unet)


@pytest.fixture
def inputs(flow):
    return {
        "model": flow,
        "source": prompt(1),
        "target": prompt(2),
        "negative": prompt(3),
        "latent_image": {"samples": torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))},
        "sigmas": calculate_sigmas(flow.get_model_object("model_sampling"), "simple", 2),
        "source_cfg": 1.5,
        "target_cfg": 5.5,
        "skip_steps": 0,
        "averages": 1,
        "seed": 1,
    }


def run(inputs, **changed) -> dict:
    with torch.inference_mode():
        return FlowEdit.execute(**inputs | changed).args[0]


def test_the_face_is_the_promised_one():
    schema = FlowEdit.GET_SCHEMA()
    assert [item.id for item in schema.inputs] == FACE.split()
    defaults = {item.id: item.default for item in schema.inputs if getattr(item, "default", None) is not None}
    assert defaults == {"source_cfg": 1.5, "target_cfg": 5.5, "skip_steps": 4, "averages": 1, "seed": 0}
    assert [item.id for item in schema.inputs if item.optional] == ["registry"]
    assert [output.display_name or output.id for output in schema.outputs] == ["latent"]


def test_what_the_latent_carries_along_is_handed_on(inputs):
    latent = {**inputs["latent_image"], "batch_index": [4, 5], "downscale_ratio_spacial": 8}
    out = run(inputs, latent_image=latent)
    assert out["batch_index"] == [4, 5]
    assert "downscale_ratio_spacial" not in out
    assert out["samples"].shape == latent["samples"].shape


def samples(*shape: int, fill: float = 0.5) -> dict:
    return {"samples": torch.full(shape, fill)}


WRONG = {
    "an empty latent": ({"latent_image": samples(2, 4, 16, 16, fill=0.0)}, "latent_image is empty"),
    "other channels": (
        {"latent_image": samples(2, 16, 16, 16)},
        r"shape \(2, 16, 16, 16\).*\(batch, 4, height, width\)",
    ),
    "a video's latent": (
        {"latent_image": samples(1, 4, 3, 16, 16)},
        r"\(1, 4, 3, 16, 16\).*\(batch, 4, height, width\)",
    ),
    "NaN": ({"latent_image": samples(2, 4, 16, 16, fill=float("nan"))}, "latent_image holds nan"),
    "sound": (
        {"latent_image": {"samples": NestedTensor([torch.ones(1, 4, 2, 8, 8), torch.ones(1, 8, 5, 16)])}},
        "expected a clip alone",
    ),
    "no step left": ({"skip_steps": 2}, "skip_steps is 2, but sigmas hold 2 steps"),
    "rising sigmas": ({"sigmas": torch.tensor([0.0, 0.5, 0.9])}, "expected falling noise levels"),
    "no sigmas": ({"sigmas": torch.tensor([])}, "sigmas holds no step"),
    "half of the sigmas": ({"sigmas": torch.tensor([0.9, 0.5])}, r"sigmas end at 0\.5, expected 0"),
    "another model's sigmas": ({"sigmas": torch.tensor([14.6, 1.0, 0.0])}, "sigmas go up to 14.6"),
    "another model's prompts": ({"target": [[torch.ones(1, 7, 48), {}]]}, r"cannot run on these inputs.*\(1, 7, 48\)"),
}


@pytest.mark.parametrize(("changed", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_inputs_are_refused_with_a_cure(inputs, changed, words):
    with pytest.raises(ValueError, match=words):
        run(inputs, **changed)


@pytest.mark.parametrize("name", ["demo", "cogvideox"])
def test_models_that_are_no_flow_models_are_refused(tiny_models, unet, inputs, name):
    model = unet if name == "demo" else tiny_models.load(name)
    with pytest.raises(ValueError, match=r"needs a flow model.*Use EntropyGuidedEdit"):
        run(inputs, model=model)


def test_a_registry_of_another_model_is_refused(tiny_models, inputs):
    registry = SelectAttentionLayers.execute(tiny_models.load("wan21"), "*").args[0]
    with pytest.raises(RegistryError, match="FlowEdit: the registry is of another model"):
        run(inputs, registry=registry)


def test_a_step_that_goes_nowhere_changes_nothing(inputs):
    first, last = inputs["sigmas"][[0, -1]].tolist()
    plain, idle = (run(inputs, sigmas=torch.tensor(each)) for each in ([first, last], [first, first, last, last]))
    assert torch.equal(plain["samples"], idle["samples"])
