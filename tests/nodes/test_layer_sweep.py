"""LayerSweep: its damages are those of the same runs by hand; what it found outlives a cancel."""

import json

import comfy.samplers
import pytest
import torch
from coherence.attention.registry import Ranking, RegistryError, reselect
from coherence.attention.sites import NoSuchSiteError
from coherence.demo.model import load_model, load_vae
from coherence.files.registry_file import from_json, to_json
from coherence.metrics.damage import DAMAGES
from coherence.nodes.checks import InputError
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.guidance import IEGuidanceCFG
from coherence.nodes.layer_sweep import LayerSweep
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.perturbation import PerturbAttention
from coherence.samplers.lora_steps import with_lora
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_easycache import EasyCacheNode
from guided_runs import guided_run
from random_controlnet import controlnet
from random_lora import lora_for
from register_runs import demo_conditioning, demo_start
from support.tiny_clip import tiny_clip_vision

from nodes import ControlNetApplyAdvanced

LAYERS = "middle, output.3"
NAMES = ["middle.0.attn1", "output.3.attn1"]


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def vae():
    return load_vae()


class Counting:
    """A VAE that counts, and is cancelled at a decode."""

    def __init__(self, vae, cancelled_at: int | None = None) -> None:
        self.vae, self.decoded, self.cancelled_at = vae, 0, cancelled_at

    def encode(self, images):
        return self.vae.encode(images)

    def decode(self, samples):
        if self.decoded == self.cancelled_at:
            raise InterruptProcessingException
        self.decoded += 1
        return self.vae.decode(samples)


def inputs_for(model, seed: int = 3, frames: int = 2, steps: int = 3, sampler: str = "dpmpp_2m") -> dict:
    start = demo_start(model, steps)
    start.noise.seed = seed
    return {
        "model": model,
        "positive": start.conditioning,
        "negative": demo_conditioning(2)[1:],
        "noise": start.noise,
        "sampler": comfy.samplers.sampler_object(sampler),
        "sigmas": start.sigmas,
        "latent_image": {"samples": torch.zeros(frames, 4, 8, 8)},
    }


def swept(model, vae, **options):
    options = {"perturbation": "identity", "score": "change", "kind": "all", "cfg": 3.0, "layers": LAYERS, **options}
    inputs = {name: options.pop(name) for name in ("seed", "frames", "steps", "sampler") if name in options}
    with torch.inference_mode():
        return LayerSweep.execute(**inputs_for(model, **inputs) | {"vae": vae} | options).args


def by_hand(model, vae, matrix: str, layer: str | None, span=(0.0, 1.0), **inputs):
    """The clip that ComfyUI's own guider samples under PerturbAttention."""
    given = inputs_for(model, **inputs)
    with torch.inference_mode():
        if layer is not None:
            (registry,) = SelectAttentionLayers.execute(model, layer).args
            (model,) = PerturbAttention.execute(model, registry, matrix, 0.5, *span).args
        prompts, noise = (given["positive"], given["negative"]), given["noise"].generate_noise(given["latent_image"])
        samples = guided_run(model, prompts, 3.0, noise, given["sigmas"], given["sampler"], seed=3)
        return vae.decode(samples).clamp(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("matrix", "span"), [("identity", (0.0, 1.0)), ("uniform", (0.5, 1.0))])
def test_damage_is_that_of_the_same_runs_by_hand(unet, vae, matrix, span):
    registry, chart, report = swept(unet, vae, perturbation=matrix, start_percent=span[0], end_percent=span[1])
    plain = by_hand(unet, vae, matrix, None)
    layers = {each["name"]: each for each in json.loads(report)["layers"]}
    assert list(layers) == NAMES
    for name in NAMES:
        clip = by_hand(unet, vae, matrix, name, span)
        for score, of in DAMAGES.items():
            assert layers[name]["damage"][score] == pytest.approx(of(clip, plain), abs=1e-6)
    worst = max(NAMES, key=lambda name: layers[name]["damage"]["change"])
    assert registry.selected == (worst,)
    assert layers[worst]["damage"]["change"] > 0.001
    assert chart.shape[0] == 1


def guided(model):
    (registry,) = SelectAttentionLayers.execute(model, "output.3").args
    return IEGuidanceCFG.execute(model, registry, "U-I", 2.0)[0]


COMPANY = {
    "guidance": guided,
    "a cache": lambda model: EasyCacheNode.execute(model, 0.5, 0.0, 1.0, False)[0],
    "a technique at the first steps": lambda model: TemporalMomentumAttention.execute(model, 0.9, end_percent=0.2)[0],
    "a LoRA at the first steps": lambda model: with_lora(model, lora_for(model), 0.5, 0.0, 0.2, "GEAdapterApply"),
    "a sampler that hooks into guidance": lambda model: model,
}


@pytest.mark.parametrize("company", COMPANY)
def test_what_counts_the_models_calls_meets_all_of_them(unet, vae, company):
    with torch.inference_mode():
        model = COMPANY[company](unet)
    inputs = {"steps": 6, "sampler": "euler_cfg_pp" if "sampler" in company else "euler"}
    plain, clip = (by_hand(model, vae, "identity", layer, (0.5, 1.0), **inputs) for layer in (None, NAMES[1]))
    report = json.loads(swept(model, vae, layers=NAMES[1], start_percent=0.5, **inputs)[2])
    assert DAMAGES["change"](clip, plain) > 1e-5
    assert report["layers"][0]["damage"]["change"] == pytest.approx(DAMAGES["change"](clip, plain), abs=1e-6)


@pytest.mark.parametrize("steered", [False, True])
def test_steps_before_the_perturbation_run_once_unless_a_controlnet_sees_them(unet, vae, steered):
    prompts = [[each] for each in demo_conditioning(2)]
    if steered:
        with torch.inference_mode():
            steering = controlnet(), torch.rand(2, 64, 64, 3), 0.5, 0.0, 1.0
            prompts = ControlNetApplyAdvanced().apply_controlnet(*prompts, *steering)

    def calls(start: float) -> int:
        seen = []
        handle = unet.model.diffusion_model.register_forward_hook(lambda *_: seen.append(1))
        told = dict(zip(("positive", "negative"), prompts, strict=True))
        swept(unet, vae, layers="middle", steps=6, seed=11, start_percent=start, **told)
        handle.remove()
        return len(seen)

    assert (calls(0.6) == calls(0.0)) == steered


@pytest.mark.slow
def test_a_cancelled_sweep_goes_on_where_it_was(unet, vae):
    cut = Counting(vae, cancelled_at=2)  # after the plain clip and one layer
    with pytest.raises(InterruptProcessingException):
        swept(unet, cut, seed=5)
    resumed = Counting(vae)
    report = swept(unet, resumed, seed=5)[2]
    assert resumed.decoded == 2  # the plain clip, and the layer that was missing
    other = unet.clone()
    other.model = load_model().model
    fresh = Counting(vae)
    assert swept(other, fresh, seed=5)[2] == report
    assert fresh.decoded == 3


class Faint(Counting):
    """A VAE whose pictures have half the contrast."""

    def decode(self, samples):
        return super().decode(samples) / 2


def test_what_another_vae_or_encoder_has_shown_is_not_taken_over(unet, vae):
    def damages(vae, seed=0):
        return swept(unet, vae, layers="middle", frames=1, steps=2, clip_vision=tiny_clip_vision(seed))[2]

    first = damages(vae)
    faint = Faint(vae)
    assert damages(faint) != first
    assert faint.decoded == 2
    other = Counting(vae)
    assert damages(other, seed=1) != first
    assert other.decoded == 2
    same = Counting(vae)
    assert damages(same) == first
    assert same.decoded == 1


def test_more_layers_than_are_tested_are_refused_before_any_run(unet, vae):
    counting = Counting(vae)
    with pytest.raises(RegistryError, match="count: 5 layers asked for"):
        swept(unet, counting, count=5)
    assert counting.decoded == 0


def test_the_registry_keeps_damage_when_saved_and_selects_by_it_again(unet, vae):
    registry = swept(unet, vae)[0]
    read = from_json(to_json(registry))
    assert read == registry
    least = reselect(read, Ranking(select="lowest", by="damage"))
    assert set(least.selected) | set(registry.selected) == set(NAMES)
    assert all(layer.damage is None for layer in registry.layers if layer.name not in NAMES)
    with pytest.raises(RegistryError, match="count: 3 layers asked for, but the model has 2"):
        reselect(read, Ranking(count=3, by="damage"))
    bare = SelectAttentionLayers.execute(unet, "middle").args[0]
    with pytest.raises(RegistryError, match="no damage to rank by"):
        reselect(bare, Ranking(by="damage"))


@pytest.mark.slow
def test_clip_similarity_is_measured_with_an_encoder_and_refused_without(unet, vae):
    report = json.loads(swept(unet, vae, score="clip_similarity", clip_vision=tiny_clip_vision())[2])
    damages = [each["damage"]["clip_similarity"] for each in report["layers"]]
    assert all(0 < each < 2 for each in damages)
    with pytest.raises(InputError, match="score is clip_similarity, which needs clip_vision"):
        swept(unet, vae, score="clip_similarity")


def test_consistency_of_one_frame_is_refused(unet, vae):
    with pytest.raises(InputError, match="score is consistency"):
        swept(unet, vae, score="consistency", frames=1)


def test_layers_whose_map_another_node_replaces_are_left_out(unet, vae):
    (registry,) = SelectAttentionLayers.execute(unet, "middle").args
    (model,) = PerturbAttention.execute(unet, registry, "uniform").args
    report = swept(model, vae, layers=LAYERS)[2]
    assert "output.3.attn1" in report
    assert "middle.0.attn1" not in report
    with pytest.raises(RegistryError, match=r"had no map: middle\.0\.attn1\. Another node .*Perturb Attention"):
        swept(model, vae, layers="middle")


def test_layers_that_are_not_there_are_refused(unet, vae):
    with pytest.raises(NoSuchSiteError):
        swept(unet, vae, layers="nowhere")
