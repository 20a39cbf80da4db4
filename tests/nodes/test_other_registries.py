"""A registry is used on the model it was made on: another one is refused by what differs, further layers are logged."""

import logging
from dataclasses import replace

import pytest
import torch
from coherence.attention.forms import Form, inflated
from coherence.attention.registry import AttentionRegistry, RegistryError, choice_for, model_names
from coherence.demo.model import load_model
from coherence.nodes.editing import EntropyGuidedEdit
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.guidance import IEGuidanceCFG, IEGuider
from coherence.nodes.perturbation import PerturbAttention
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from watching import DEMO


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def with_stam(unet):
    """The demo model with temporal layers, which another node added."""
    return inflated(unet, Form("stam", "before_cross", "self"), None, layers="*", strength=1.0, asked_by="test")


def registry_of(model, layers="*") -> AttentionRegistry:
    return SelectAttentionLayers.execute(model, layers)[0]


def edited(model, registry, replace="map"):
    positive, negative = DEMO.conditioning()
    sigmas, latent = torch.tensor([4.0, 0.0]), {"samples": torch.zeros(DEMO.latent_shape)}
    how = (Noise_RandomNoise(3), sampler_object("euler"), sigmas, latent, 4.0, 4.0, replace)
    with torch.inference_mode():
        return EntropyGuidedEdit.execute(model, positive, positive, negative, registry, *how)


NODES = {
    "IEGuidanceCFG": lambda model, registry: IEGuidanceCFG.execute(model, registry, "U-I", 2.0),
    "IEGuider": lambda model, registry: IEGuider.execute(model, registry, "U-I", 2.0, *DEMO.conditioning(), 4.0),
    "PerturbAttention": lambda model, registry: PerturbAttention.execute(model, registry, "uniform"),
    "EntropyGuidedEdit": edited,
}
every_node = pytest.mark.parametrize("node", NODES)


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [each.message for each in caplog.records if "registry" in each.message]


@every_node
def test_a_registry_of_another_family_is_refused_by_its_name(tiny_models, unet, node):
    """CogVideoX's ``blocks.0`` would match what begins like it in other transformers."""
    registry = registry_of(tiny_models.load("cogvideox"))
    for family, name in (("wan21", r"WAN21 \(WanModel\)"), ("ltxv", r"LTXV \(LTXVModel\)")):
        words = rf"{node}: .*another model: CogVideoX \(CogVideoXTransformer3DModel\), this one is {name}\. Measure"
        with pytest.raises(RegistryError, match=words):
            NODES[node](tiny_models.load(family), registry)


@every_node
def test_a_registry_of_another_model_of_the_family_is_refused_by_its_layers(tiny_models, node):
    """SD1.5 and SD2 are of one class, and their layers have the same names."""
    registry, other = registry_of(tiny_models.load("sd15")), tiny_models.load("sd20")
    assert (registry.model, registry.network) == model_names(other)
    with pytest.raises(
        RegistryError, match=rf"{node}: .*of another BaseModel: input\.1\.attn1 has \d heads of spatial"
    ):
        NODES[node](other, registry)


@every_node
def test_layers_that_another_node_adds_are_asked_for(unet, with_stam, node):
    registry = registry_of(with_stam, "temporal")
    with pytest.raises(
        RegistryError, match=rf"{node}: .*not have input\.1\.stam, input\.3\.stam, .*STAMInflate, put it"
    ):
        NODES[node](unet, registry)


@every_node
def test_further_layers_that_are_not_selected_are_told(unet, with_stam, node, told):
    """By node of the model that it was made on, of the model it is used on, or of both."""
    NODES[node](unet, registry_of(unet, "middle"))
    assert told() == []
    NODES[node](with_stam, registry_of(unet, "middle"))
    assert len(told()) == 1
    assert told()[0].startswith(f"{node}: the registry was made on a BaseModel with other layers. Added here: input.1.")
    assert "missing here: none" in told()[0]
    NODES[node](unet, registry_of(with_stam, "middle.0.attn1"))
    assert "Added here: none; missing here: input.1.stam, input.3.stam, middle.0.stam and 4 others." in told()[1]


def test_a_map_of_words_needs_no_registry_of_the_model(tiny_models, unet):
    edited(unet, registry_of(tiny_models.load("wan21")), "cross_map")


def test_a_compiled_model_is_the_same_model(unet, told):
    compiled = unet.clone()
    network = unet.get_model_object("diffusion_model")
    compiled.add_object_patch("diffusion_model", torch.compile(network, backend="eager"))
    assert model_names(compiled) == model_names(unet)
    before = replace(registry_of(unet), network="OptimizedModule")  # as it was once written
    for model, registry in ((compiled, registry_of(unet)), (unet, before), (unet, registry_of(compiled))):
        assert choice_for(model, registry, "test")[0] == registry_of(unet).selector
    assert told() == []


def test_what_a_file_calls_its_model_makes_no_long_message(unet):
    registry = registry_of(unet)
    for other in (replace(registry, model="x" * 10**6), replace(registry, layers=long_names(registry))):
        with pytest.raises(RegistryError, match="xxx") as told:
            choice_for(unet, other, "test")
        assert len(str(told.value)) < 500


def long_names(registry):
    return tuple(replace(layer, name="x" * 10**5 + str(layer.order), selected=True) for layer in registry.layers)
