"""The inverting nodes on real models of every family, through ComfyUI's own sampling nodes."""

import pytest
import torch
import torch.nn.functional as F
from coherence.attention.bilateral import TemporalBilateral, last_decoder_level
from coherence.attention.sites import NoSuchSiteError, Site, sites_of
from coherence.demo.clips import render_clip
from coherence.demo.model import load_clip, load_model, load_vae
from coherence.frames.bilateral import bilateral_spatial, bilateral_temporal
from coherence.metrics.similarity import psnr
from coherence.nodes.inversion import BilateralDDIMInvert, NoiseFromLatent, SamplerBilateralDDIMInvert
from coherence.samplers.latents import input_scale
from coherence.samplers.noises import GivenNoise
from coherence.techniques.technique import AttentionCall, PartOfFrameError
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import FlipSigmas
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from comfy_extras.nodes_void import VOIDSampler
from inversion_runs import FILTER, difference, inverted, sampled, schedule
from tiny_models import FAMILIES

from nodes import LatentFromBatch

FACES = {
    BilateralDDIMInvert: (
        {"model", "positive", "negative", "cfg", "latent_image", "sigmas", "seed", "keep_trajectory", *FILTER},
        {"latent": "LATENT", "round_trip": "STRING", "trajectory": "TRAJECTORY"},
    ),
    SamplerBilateralDDIMInvert: ({*FILTER}, {"sampler": "SAMPLER"}),
    NoiseFromLatent: ({"latent", "model"}, {"noise": "NOISE"}),
}
PROMPT = "a small red circle in the centre on a white background"


@pytest.fixture(scope="module")
def demo():
    return load_model()


@pytest.fixture(scope="module")
def prompt():
    text = load_clip()
    return text.encode_from_tokens_scheduled(text.tokenize(PROMPT))


@pytest.fixture(scope="module")
def vae():
    return load_vae()


@pytest.fixture(scope="module")
def clip(vae):
    """Three frames of a red circle that slides, encoded."""
    with torch.inference_mode():
        return {"samples": vae.encode(render_clip("circle", "red", "white", frames=3).frames)}


def restarted(model, positive, latent: dict, sigmas, way: str) -> torch.Tensor:
    """Sampling from an inverted latent, in the way that suits the family."""
    if way == "latent":
        return sampled(model, positive, latent, sigmas)
    noise = GivenNoise.of(model, latent)  # a slowed walk goes too short a way for the node
    empty = {"samples": torch.zeros_like(latent["samples"])}
    return sampled(model, positive, empty, sigmas, noise, VOIDSampler.execute().args[0] if way == "void" else None)


@pytest.mark.parametrize("node", FACES, ids=lambda node: node.__name__)
def test_face_of_the_node(node):
    schema, (inputs, results) = node.GET_SCHEMA(), FACES[node]
    assert {item.id for item in schema.inputs} == inputs
    assert {output.id: output.io_type for output in schema.outputs} == results
    assert {item.id for item in schema.inputs if item.optional} == {"negative", "keep_trajectory"} & inputs


# The round trip ----------------------------------------------------------------------------------------------------


def slowed(model, pace: float = 0.02):
    """A clone whose walk goes at a fraction of its pace: random weights make no denoiser, and whirl latents about."""
    sampling = model.get_model_object("model_sampling")

    def wrapper(apply_model, args):
        sigma = args["timestep"].view(-1, *[1] * (args["input"].ndim - 1))
        x = args["input"] / input_scale(sampling, sigma)
        return x + pace * (apply_model(args["input"], args["timestep"], **args["c"]) - x)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.mark.parametrize(
    ("family", "way"),
    [
        ("svd", "latent"),
        *(
            (name, "noise")
            for name in ("wan21", "ltxv", "hunyuan_video", "flux", "sd3", "qwen_image", "z_image", "krea2")
        ),
        ("cogvideox", "void"),
    ],
)
def test_a_model_draws_the_clip_again_from_its_noise(tiny_models, family, way):
    model = slowed(tiny_models.load(family), 0.04 if family == "sd3" else 0.02)
    positive, _ = FAMILIES[family].conditioning()
    latent, sigmas = FAMILIES[family].latent(), schedule(model, 2, "simple")
    noise, _ = inverted(model, positive, latent, sigmas, refine_iterations=2)
    again = restarted(model, positive, noise, sigmas, way)
    assert difference(again, latent["samples"]) < 0.02
    assert difference(noise["samples"], latent["samples"]) > 0.02


PARAMETRISATIONS = {
    "eps": lambda model: model,
    "v": lambda model: ModelSamplingDiscrete().patch(model, "v_prediction", False)[0],
    "v of zero terminal SNR": lambda model: ModelSamplingDiscrete().patch(model, "v_prediction", True)[0],
    "EDM": lambda model: ModelSamplingContinuousEDM().patch(model, "edm", 120.0, 0.002)[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_every_parametrisation_of_a_unet_comes_back(demo, prompt, clip, parametrisation):
    model = slowed(PARAMETRISATIONS[parametrisation](demo))
    sigmas = schedule(model, 5)
    noise, _ = inverted(model, prompt, clip, sigmas, refine_iterations=2)
    for way in ("latent", "noise"):
        assert difference(restarted(model, prompt, noise, sigmas, way), clip["samples"]) < 0.02
    assert difference(noise["samples"], clip["samples"]) > 0.02


@pytest.mark.slow
def test_a_real_clip_comes_back_from_the_demo_model(demo, prompt, clip, vae):
    sigmas = schedule(demo, 10)
    noise, report = inverted(demo, prompt, clip, sigmas, refine_iterations=2)
    again = sampled(demo, prompt, noise, sigmas)
    empty = {"samples": torch.zeros_like(noise["samples"])}
    by_noise = sampled(demo, prompt, empty, sigmas, NoiseFromLatent.execute(noise, demo)[0])
    assert difference(by_noise, again) < 1e-3
    with torch.inference_mode():
        assert psnr(vae.decode(again), vae.decode(clip["samples"])).min() > 30
    assert report["norm"][-1] == pytest.approx(1, abs=0.1), "the noise has the spread of noise"
    assert max(report["drift"]) < 0.05


def test_a_flow_model_restarts_from_amid_its_noise_as_a_latent(tiny_models):
    """Below σ = 1 the latent is scaled for DisableNoise."""
    model, (positive, _) = slowed(tiny_models.load("wan21")), FAMILIES["wan21"].conditioning()
    latent, sigmas = FAMILIES["wan21"].latent(), torch.tensor([0.6, 0.3, 0.0])
    noise, _ = inverted(model, positive, latent, sigmas, refine_iterations=2)
    assert difference(sampled(model, positive, noise, sigmas), latent["samples"]) < 0.01


# The filters -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_filters_act_and_only_where_they_are_asked_to(demo, prompt, clip):
    sigmas = schedule(demo, 4)
    plain, _ = inverted(demo, prompt, clip, sigmas)
    for mode in ("latent_spatial", "feature_temporal"):
        unfiltered, _ = inverted(demo, prompt, clip, sigmas, mode=mode, filter_until=0.0)
        assert torch.equal(unfiltered["samples"], plain["samples"])
        idle, _ = inverted(demo, prompt, clip, sigmas, mode=mode, kernel_size=1, restandardise=False)
        torch.testing.assert_close(idle["samples"], plain["samples"], atol=1e-3, rtol=0)
        half, _ = inverted(demo, prompt, clip, sigmas, mode=mode)
        whole, _ = inverted(demo, prompt, clip, sigmas, mode=mode, filter_until=1.0)
        assert difference(half["samples"], plain["samples"]) > 0.01
        assert difference(whole["samples"], half["samples"]) > 0.01


def test_the_filter_sees_latents_as_the_model_does(tiny_models):
    """Of unit variance at every noise level, whatever the latent's own scale is: else sigma_intensity means nothing."""
    family = FAMILIES["wan21"]
    model, (positive, _) = slowed(tiny_models.load("wan21"), pace=0.0), family.conditioning()
    latent, sigmas = family.latent(), schedule(model, 2)
    options = {"mode": "latent_spatial", "filter_until": 0.5, "restandardise": False}
    noise, _ = inverted(model, positive, latent, sigmas, **options)
    expected = model.model.process_latent_out(
        bilateral_spatial(model.model.process_latent_in(latent["samples"]), 5, 1, 1)
    )
    torch.testing.assert_close(noise["samples"], expected, atol=1e-4, rtol=0)


def test_literal_draws_noise_of_its_seed_only(demo, prompt, clip):
    sigmas = schedule(demo, 3)
    state = torch.random.get_rng_state()
    first, again, other = (
        inverted(demo, prompt, clip, sigmas, mode="literal", seed=seed)[0]["samples"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert difference(first, other) > 0.01
    assert torch.equal(torch.random.get_rng_state(), state)


def test_literal_adds_the_same_noise_however_a_batch_is_split(demo, prompt, clip):
    def made(latent):
        return inverted(demo, prompt, latent, schedule(demo, 3), mode="literal", seed=1)[0]["samples"]

    parts = [made(LatentFromBatch().frombatch(clip, start, count)[0]) for start, count in ((0, 1), (1, 2))]
    assert difference(torch.cat(parts), made(clip)) < 1e-4


def test_features_are_filtered_in_the_last_decoder_level(demo):
    """The demo model's decoder has two blocks on either level."""
    assert [site.name for site in last_decoder_level(sites_of(demo))] == ["output.2.attn1", "output.3.attn1"]


def test_the_features_of_a_clip_are_filtered_over_its_frames_branch_by_branch():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, 5, 8, generator=generator, dtype=torch.float64) for _ in "qkv")
    site = Site("output.3.attn1", 0, "spatial", 1, None)
    call = AttentionCall(q, k, v, 1, site, ((1, None), (0, None)), (0, 1, 2), sigma=1.0)
    technique = TemporalBilateral(3, 1.0, 2.0)
    out = F.scaled_dot_product_attention(q, k, v)
    expected = torch.cat([bilateral_temporal(branch, 3, 1.0, 2.0) for branch in out.chunk(2)])
    torch.testing.assert_close(technique.attend(call, F.scaled_dot_product_attention), expected, atol=1e-12, rtol=0)
    technique.active = False
    assert torch.equal(technique.attend(call, F.scaled_dot_product_attention), out)


# In a graph --------------------------------------------------------------------------------------------------------


def test_the_sampler_does_what_the_node_does(demo, prompt, clip):
    sigmas = schedule(demo, 4)
    node, _ = inverted(demo, prompt, clip, sigmas, mode="latent_spatial")
    (flipped,) = FlipSigmas.execute(sigmas).args
    (sampler,) = SamplerBilateralDDIMInvert.execute(**FILTER | {"mode": "latent_spatial"}).args
    graph = sampled(demo, prompt, clip, flipped, sampler=sampler)
    assert difference(graph, node["samples"]) < 1e-3, "but for FlipSigmas' 0.0001 instead of 0"


def test_guidance_uses_the_negative_prompt(demo, prompt, clip):
    text = load_clip()
    negative = text.encode_from_tokens_scheduled(text.tokenize("a blue square"))
    sigmas = schedule(demo, 3)
    plain, _ = inverted(demo, prompt, clip, sigmas)
    idle, _ = inverted(demo, prompt, clip, sigmas, negative=negative)
    guided, _ = inverted(demo, prompt, clip, sigmas, negative=negative, cfg=3.0)
    assert torch.equal(idle["samples"], plain["samples"])
    assert difference(guided["samples"], plain["samples"]) > 0.05


def test_nothing_of_the_users_is_changed(demo, prompt, clip):
    before = clip["samples"].clone()
    latent = {**clip, "batch_index": [0, 1, 2]}
    noise, report = inverted(demo, prompt, latent, schedule(demo, 2), mode="feature_temporal")
    assert torch.equal(clip["samples"], before)
    assert not demo.wrappers
    assert not demo.model_options["transformer_options"]
    assert noise.keys() == latent.keys()
    assert len(report["sigma"]) == len(report["norm"]) == len(report["drift"]) == 2


def test_a_cancel_is_obeyed(demo, prompt, clip):
    interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        inverted(demo, prompt, clip, schedule(demo, 2))


# Mistakes of users -------------------------------------------------------------------------------------------------


def test_sigmas_the_wrong_way_round_are_refused(demo, prompt, clip):
    sigmas = schedule(demo, 3)
    (sampler,) = SamplerBilateralDDIMInvert.execute(**FILTER).args
    with pytest.raises(ValueError, match="Put FlipSigmas between"):
        sampled(demo, prompt, clip, sigmas, sampler=sampler)
    with pytest.raises(ValueError, match="takes them as the scheduler gives them"):
        inverted(demo, prompt, clip, sigmas.flip(0))


def test_a_noise_mask_is_refused(demo, prompt, clip):
    masked = {**clip, "noise_mask": torch.ones(1, 16, 16)}
    with pytest.raises(ValueError, match="has a noise mask"):
        inverted(demo, prompt, masked, schedule(demo, 2))


def test_sound_beside_the_pictures_is_refused(demo, prompt, clip):
    both = {"samples": NestedTensor([clip["samples"], torch.ones(3, 4, 16, 1)])}
    with pytest.raises(ValueError, match="Leave the sound out"):
        inverted(demo, prompt, both, schedule(demo, 2))


def test_guidance_without_a_negative_prompt_is_refused(demo, prompt, clip):
    with pytest.raises(ValueError, match=r"cfg is 7\.5, which needs the negative prompt"):
        inverted(demo, prompt, clip, schedule(demo, 2), cfg=7.5)


@pytest.mark.parametrize(
    ("mode", "error", "complaint"),
    [
        ("literal", ValueError, "this is a flow model"),
        ("feature_temporal", NoSuchSiteError, "last decoder level of a UNet"),
    ],
)
def test_a_mode_that_the_model_cannot_have_is_refused(tiny_models, mode, error, complaint):
    family = FAMILIES["wan21"]
    model, (positive, _) = tiny_models.load("wan21"), family.conditioning()
    with pytest.raises(error, match=complaint):
        inverted(model, positive, family.latent(), schedule(model, 2), mode=mode)


def test_tiles_of_frames_are_not_taken_for_frames(demo, prompt, clip):
    tiled = HyperTile.execute(demo, 32, 1, 0, False)[0]
    with pytest.raises(PartOfFrameError, match=r"rows for 3 frames.*HyperTile"):
        inverted(tiled, prompt, clip, schedule(demo, 2), mode="feature_temporal")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_noise_of_another_size_is_refused(demo):
    noise = NoiseFromLatent.execute({"samples": 80 * normal(3, 4, 16, 16)}, demo)[0]
    with pytest.raises(ValueError, match=r"shape \(3, 4, 16, 16\), but .* \(1, 4, 16, 16\)"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 16, 16)})


def test_a_latent_that_is_no_noise_is_refused(demo, clip):
    empty = {"samples": torch.zeros(3, 4, 16, 16)}
    for latent, spread in ((clip, "0.04"), (empty, "0")):
        with pytest.raises(ValueError, match=rf"not at the model's highest .* is {spread},.*VAE Encode.*an inversion"):
            NoiseFromLatent.execute(latent, demo)


def test_pictures_for_a_model_with_video_latents_get_the_axis_that_the_sampler_adds(tiny_models):
    pictures = {"samples": 2 * normal(3, 16, 8, 8)}
    noise = NoiseFromLatent.execute(pictures, tiny_models.load("wan21"))[0]
    assert noise.generate_noise({"samples": torch.zeros(3, 16, 1, 8, 8)}).shape == (3, 16, 1, 8, 8)
