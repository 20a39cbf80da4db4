"""EntropyGuidedEdit: its face, what it hands on, and a run through the server."""

import pytest
import torch
from coherence.attention.registry import AttentionRegistry
from coherence.client.errors import PromptError
from coherence.demo.model import load_model
from coherence.hosting.provision import PACK
from coherence.nodes.editing import EntropyGuidedEdit
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.inversion import BilateralDDIMInvert
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise
from editing_runs import demo_run
from inversion_runs import FILTER
from watching import DEMO, difference

FACE = "model source target negative registry noise sampler sigmas latent_image cfg source_cfg replace"
FACE += " start_percent end_percent mask target_latent trajectory alignment"
GENERATED = PACK / "workflows" / "edit_generated_clip.json"


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture
def inputs(unet):
    run = demo_run(unet)
    return {
        "model": unet,
        "source": run.source,
        "target": run.target,
        "negative": run.negative,
        "registry": SelectAttentionLayers.execute(unet, "*").args[0],
        "noise": Noise_RandomNoise(3),
        "sampler": sampler_object("euler"),
        "sigmas": run.sigmas,
        "latent_image": run.latents,
        "cfg": 4.0,
        "source_cfg": 4.0,
        "replace": "map",
    }


def edited(inputs, **changed):
    with torch.inference_mode():
        return [latent["samples"] for latent in EntropyGuidedEdit.execute(**inputs | changed).args]


def test_the_face_is_the_promised_one():
    schema = EntropyGuidedEdit.GET_SCHEMA()
    assert [item.id for item in schema.inputs] == FACE.split()
    defaults = {item.id: item.default for item in schema.inputs if getattr(item, "default", None) is not None}
    expected = {"cfg": 7.5, "source_cfg": 1.0, "replace": "map", "start_percent": 0.0, "end_percent": 1.0}
    assert defaults == expected
    assert [output.display_name or output.id for output in schema.outputs] == ["edited", "source"]
    optional = ["mask", "target_latent", "trajectory", "alignment"]
    assert [item.id for item in schema.inputs if item.optional] == optional


def test_it_gives_the_edited_clip_first_and_then_the_source(unet, inputs):
    run = demo_run(unet)
    for ours, expected in zip(edited(inputs), run.edit(), strict=True):
        assert torch.equal(ours, expected)


def test_a_registry_without_layers_gives_plain_sampling(unet, inputs):
    registry = inputs["registry"]
    empty = AttentionRegistry(registry.model, registry.network, (), "")
    run = demo_run(unet)
    target, source = edited(inputs, registry=empty)
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3


def test_without_noise_it_starts_from_the_latent(inputs):
    start = 14.6 * torch.randn(DEMO.latent_shape, generator=torch.Generator().manual_seed(9))
    target, source = edited(inputs, noise=Noise_EmptyNoise(), latent_image={"samples": start, "batch_index": [0, 1, 2]})
    other_target, other_source = edited(inputs)
    assert difference(source, other_source) > 0.05
    assert difference(target, other_target) > 0.05


def test_what_the_latent_carries_along_is_handed_on(inputs):
    latent = {**inputs["latent_image"], "batch_index": [4, 5, 6], "downscale_ratio_spacial": 8}
    for out in EntropyGuidedEdit.execute(**inputs | {"latent_image": latent}).args:
        assert out["batch_index"] == [4, 5, 6]
        assert "downscale_ratio_spacial" not in out


def test_it_goes_on_from_its_own_outputs_and_pins_the_source_to_a_trajectory(unet, inputs):
    run, sigmas = demo_run(unet), inputs["sigmas"]
    clip = {"samples": torch.randn(run.shape, generator=torch.Generator().manual_seed(5))}
    with torch.inference_mode():
        *_, kept = BilateralDDIMInvert.execute(unet, run.source, 1.0, clip, sigmas, **FILTER).args
    target, source = edited(inputs, trajectory=kept)
    assert torch.equal(source, clip["samples"])
    first = EntropyGuidedEdit.execute(**inputs | {"sigmas": sigmas[:2], "trajectory": kept}).args
    goes_on = {"noise": Noise_EmptyNoise(), "latent_image": first[1], "target_latent": first[0]}
    parts = edited(inputs, sigmas=sigmas[1:], trajectory=kept, **goes_on)
    assert difference(parts[0], target) < 1e-5
    assert torch.equal(parts[1], source)


# Through the server --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompt(to_api):
    prompt = to_api(GENERATED)
    for node in prompt.values():
        limits = {"batch_size": 2, "steps": 2}
        node["inputs"] |= {name: value for name, value in limits.items() if name in node["inputs"]}
    return prompt


def test_the_server_runs_an_edit(server, prompt):
    assert server.queue(prompt)["status"]["status_str"] == "success"


def test_the_server_explains_an_adaptive_sampler_at_the_node(server, prompt):
    (select,) = (node for node in prompt.values() if node["class_type"] == "KSamplerSelect")
    select["inputs"]["sampler_name"] = "dpm_adaptive"
    with pytest.raises(PromptError, match=r"\(EntropyGuidedEdit\).*dpm_adaptive adapts its steps"):
        server.queue(prompt)
