"""Measuring runs of real models, and what is selected by them."""

import math
import os
from collections import Counter
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.samplers
import pytest
import torch
from animatediff_layout import find_packs
from coherence.attention.recorder import EntropyRecorder
from coherence.attention.registry import (
    SELECTABLE,
    Ranking,
    RegistryError,
    named_registry,
    rank,
    ranked_registry,
    reselect,
)
from coherence.attention.sites import Site, select_sites, sites_of
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.samplers.measure import Start, measure_layers, parse_steps, run_to_step
from coherence.techniques.entropy import Energy
from coherence.techniques.momentum import TemporalMomentum
from coherence.techniques.technique import AttentionCall, Technique
from hypothesis import given
from hypothesis import strategies as st
from measured import figures_of
from register_runs import MEASUREMENT, demo_conditioning, demo_start, layer_lists, registry, start_of
from tiny_models import FAMILIES, sample
from watching import DEMO

PACKS = find_packs(Path(os.environ["COMFYUI_PATH"]))
ALL = ["spatial", "temporal", "joint", "cross", "text"]


@pytest.fixture(scope="module")
def unet():
    return load_model()


def close(ours, reference, tolerance=1e-5) -> bool:
    """Whether figures of the same layers agree."""
    return ours.keys() == reference.keys() and all(
        (figures.tokens, figures.keys) == (reference[name].tokens, reference[name].keys)
        and math.isclose(figures.entropy, reference[name].entropy, abs_tol=tolerance)
        and all(
            math.isclose(*pair, rel_tol=10 * tolerance)
            for pair in zip(values(figures.energy), values(reference[name].energy), strict=True)
        )
        for name, figures in ours.items()
    )


def values(energy: Energy) -> tuple[float, float, float]:
    return energy.attention, energy.uniform, energy.identity


# Figures -------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_maps_in_float64(unet):
    calls = {}

    class Watch(Technique):
        def attend(self, call, proceed):
            calls[call.site.name] = [x.double() for x in call.per_head()]
            return proceed(call.q, call.k, call.v)

    watched, _ = tap(unet, Watch(), layers="*", kinds=ALL, asked_by="test")
    start = demo_start(unet)
    figures = figures_of(watched, start)
    assert calls.keys() == figures.keys()
    for name, (q, k, v) in calls.items():
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        entropy = torch.special.entr(weights).sum(-1).mean() / math.log(k.shape[2])
        energy = [x.square().sum(-1).mean() for x in (weights @ v, v.mean(2, keepdim=True), v)]
        assert figures[name].entropy == pytest.approx(entropy.item(), abs=1e-5)
        assert values(figures[name].energy) == pytest.approx([x.item() for x in energy], rel=1e-4)
        assert (figures[name].tokens, figures[name].keys) == (q.shape[2], k.shape[2])
    assert max(f.entropy for f in figures.values()) - min(f.entropy for f in figures.values()) > 0.05


def test_sampling_rows_comes_close_and_says_how_close(unet):
    start = start_of(unet, demo_conditioning(), (1, 4, 32, 32))  # 1024 tokens at the first level
    exact, sampled = figures_of(unet, start), figures_of(unet, start, precision="sampled")
    assert any(figures.half_width > 0 for figures in sampled.values())
    for name, figures in sampled.items():
        assert figures.entropy == pytest.approx(exact[name].entropy, abs=2 * figures.half_width + 1e-6)
        assert (figures.half_width > 0) == (exact[name].tokens > 256)
        assert exact[name].half_width == 0


def test_several_steps_give_the_mean_of_each_alone(unet):
    start = demo_start(unet)
    alone = [figures_of(unet, start, [step]) for step in (0, 2)]
    both = figures_of(unet, start, [0, 2])
    assert not close(*alone, tolerance=1e-3)
    for name, figures in both.items():
        assert figures.entropy == pytest.approx(sum(each[name].entropy for each in alone) / 2, abs=1e-6)
        assert figures.energy.attention == pytest.approx(sum(each[name].energy.attention for each in alone) / 2)


@pytest.mark.parametrize("family", ["demo", "wan21"])
def test_the_run_is_the_one_the_euler_sampler_makes(family, unet, tiny_models):
    """A recorder in ComfyUI's own sampling at cfg 1 sees the same at every step: for eps and for flow."""
    model = unet if family == "demo" else tiny_models.load(family)
    start = (
        demo_start(unet)
        if family == "demo"
        else start_of(model, FAMILIES[family].conditioning()[0], FAMILIES[family].latent_shape)
    )
    recorder = EntropyRecorder(recording=True)
    watched, sites = tap(model, recorder, layers="*", kinds=ALL, asked_by="test")
    guider = comfy.samplers.CFGGuider(watched)
    guider.set_conds(start.conditioning, [])
    guider.set_cfg(1.0)
    samples = start.latent["samples"]
    noise = start.noise.generate_noise({"samples": samples})
    with torch.inference_mode():
        guider.sample(noise, samples, comfy.samplers.sampler_object("euler"), start.sigmas, disable_pbar=True, seed=3)
    assert close(figures_of(model, start, range(start.steps)), recorder.figures(sites))


def test_cogvideox_sees_latents_of_unit_variance_at_every_step(tiny_models):
    model, family = tiny_models.load("cogvideox").clone(), FAMILIES["cogvideox"]
    seen = []

    def look(apply_model, args):
        seen.append(args["input"].std().item())
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(look)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(family.latent_shape, generator=generator) / model.model.latent_format.scale_factor
    start = start_of(model, family.conditioning()[0], family.latent_shape, latent=latent)
    with torch.inference_mode():
        run_to_step(model, start, 3, lambda step: None, "test")
    assert len(seen) == 4
    assert seen[0] == pytest.approx(1, abs=0.05)
    assert all(0.5 < std < 1.5 for std in seen)


def test_branches_together_or_split_give_the_same_figures(unet, monkeypatch):
    start = demo_start(unet, conditioning=demo_conditioning(entries=2))
    together = figures_of(unet, start)
    calls = []
    model = unet.clone()

    def count(apply_model, args):
        calls.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(count)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    assert close(figures_of(model, start), together)
    assert calls == [1, 1]
    assert not close(figures_of(unet, demo_start(unet)), together)


def test_figures_that_are_not_finite_are_refused_by_name():
    q = torch.full((1, 8, 4), torch.inf)
    site = Site("middle.0.attn1", 0, "spatial", 1, torch.nn.Identity())
    call = AttentionCall(q, q, q, 1, site, ((0, None),), (0,), 1.0)
    with pytest.raises(RegistryError, match=r"middle\.0\.attn1.*overflow"):
        EntropyRecorder(recording=True).attend(call, lambda q, k, v: v)


# Every family --------------------------------------------------------------------------------------------------

EXPECTED = {
    "sd15": {"spatial": "BasicTransformerBlock", "cross": "BasicTransformerBlock"},
    "sd20": {"spatial": "BasicTransformerBlock", "cross": "BasicTransformerBlock"},
    "sdxl": {"spatial": "BasicTransformerBlock", "cross": "BasicTransformerBlock"},
    "wan21": {"joint": "WanSelfAttention", "cross": "WanT2VCrossAttention"},
    "wan22": {"joint": "WanSelfAttention", "cross": "WanT2VCrossAttention"},
    "wan21_i2v": {"joint": "WanSelfAttention", "cross": "WanI2VCrossAttention"},
    "cogvideox": {"joint": "CogVideoXBlock"},
    "ltxv": {"joint": "BasicTransformerBlock", "cross": "BasicTransformerBlock"},
    "hunyuan_video": {"joint": "SelfAttention", "text": "TokenRefinerBlock"},
    "svd": {"spatial": "SpatialVideoTransformer", "temporal": "SpatialVideoTransformer"},
    "flux": {"joint": "SelfAttention"},
    "sd3": {"joint": "JointBlock", "spatial": "PatchEmbed"},
    "qwen_image": {"joint": "QwenImageTransformerBlock"},
    "krea2": {"joint": "SingleStreamBlock", "text": "TextFusionBlock"},
}
"""Of each kind there are as many layers as the module tree has modules of this class."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_measures_exactly_the_attention_layers_of_the_module_tree(name, tiny_models):
    model, family = tiny_models.load(name), FAMILIES[name]
    start = start_of(model, family.conditioning()[0], family.latent_shape)
    with torch.inference_mode():
        sites, figures = measure_layers(model, start, [0], "exact", "test")
    modules = Counter(type(module).__name__ for module in model.get_model_object("diffusion_model").modules())
    kinds = Counter(site.kind for site in sites)
    expected = {kind: modules[class_name] for kind, class_name in EXPECTED[name].items()}
    if name == "wan21_i2v":
        expected["cross"] *= 2  # to the picture, and to the text
    if name == "svd":
        expected["cross"] = expected["spatial"] + expected["temporal"]
    if name in ("hunyuan_video", "flux"):  # two streams of a double block attend at once
        expected["joint"] = modules["DoubleStreamBlock"] + modules["SingleStreamBlock"]
    assert kinds == expected
    assert figures.keys() == {site.name for site in sites}
    for figure in figures.values():
        assert 0 < figure.entropy < 1 or figure.keys == 1
        assert all(energy > 0 for energy in values(figure.energy))


@pytest.mark.parametrize("pack", PACKS)
def test_motion_models_are_measured_along_and_their_layers_can_be_selected(pack, unet):
    animated = PACKS[pack](unet)
    start = demo_start(unet)
    with torch.inference_mode():
        sites, figures = measure_layers(animated, start, [0], "exact", "test")
    motion = [site for site in sites if site.kind == "temporal"]
    assert Counter(site.kind for site in sites) == {"spatial": 7, "cross": 7, "temporal": 14}
    assert {(figures[site.name].tokens, figures[site.name].keys) for site in motion} == {(3, 3)}
    assert all(0 < figures[site.name].entropy < 1 for site in motion)
    measured = ranked_registry(
        "BaseModel", "UNetModel", sites, figures, Ranking("temporal", "lowest", 0, 50), MEASUREMENT
    )
    assert len(measured.selected) == 7
    assert set(measured.selected) <= {site.name for site in motion}


# No trace, and others' patches -----------------------------------------------------------------------------------


class Demo:
    latent_shape = DEMO.latent_shape

    @staticmethod
    def conditioning():
        return demo_conditioning(), demo_conditioning()


def test_sampling_after_a_measuring_run_is_bit_identical(unet):
    before = sample(unet, Demo)
    state = torch.get_rng_state()
    figures_of(unet, demo_start(unet), [0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sample(unet, Demo), before)
    assert not any(module._forward_pre_hooks for module in unet.get_model_object("diffusion_model").modules())


def test_a_cancel_stops_the_run_at_the_next_layer_and_leaves_no_trace(unet):
    before, seen = sample(unet, Demo), []

    class CancelAtMiddle(Technique):
        def attend(self, call, proceed):
            seen.append(call.site.name)
            if call.site.name == "middle.0.attn1":
                comfy.model_management.interrupt_current_processing()
            return proceed(call.q, call.k, call.v)

    model, _ = tap(unet, CancelAtMiddle(), layers="*", kinds=["spatial"], asked_by="test")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        figures_of(model, demo_start(unet))
    assert seen[-1] == "middle.0.attn1"
    assert torch.equal(sample(unet, Demo), before)


def momentum(model):
    return tap(model, TemporalMomentum(0.8), layers="*", kinds=["spatial"], asked_by="test")[0]


def flipped_keys(model):
    """Another pack's replacement of the middle block's attention."""

    def replacement(q, k, v, extra):
        return comfy.ldm.modules.attention.optimized_attention(q, k, v.flip(-2), extra["n_heads"])

    clone = model.clone()
    clone.set_model_attn1_replace(replacement, "middle", 0)
    return clone


def scaled_queries(model):
    """Another pack's patch before the projections."""
    clone = model.clone()
    clone.set_model_attn1_patch(lambda n, context, value, extra: (2 * n, context, value))
    return clone


def pag(model):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, 3.0).result[0]


@pytest.mark.parametrize("other", [flipped_keys, scaled_queries])
def test_stacked_with_momentum_and_another_packs_patch_any_order_gives_the_same_figures(unet, other):
    start = demo_start(unet)
    ours_first, ours_last = (
        figures_of(model, start, [0, 1]) for model in (other(momentum(unet)), momentum(other(unet)))
    )
    assert ours_first == ours_last
    assert not close(ours_first, figures_of(other(unet), start, [0, 1]), tolerance=1e-4)
    assert not close(ours_first, figures_of(momentum(unet), start, [0, 1]), tolerance=1e-4)


def test_guidance_on_the_model_is_not_measured(unet):
    start = demo_start(unet)
    assert figures_of(pag(unet), start, [0, 1]) == figures_of(unet, start, [0, 1])


# Steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0", (0,)),
        ("0, 5-8", (0, 5, 6, 7, 8)),
        ("all", tuple(range(10))),
        (" 3 , 1-3,3", (1, 2, 3)),
        ("ALL ", tuple(range(10))),
    ],
)
def test_measure_steps_reads_numbers_ranges_and_all(text, steps):
    assert parse_steps(text, 10) == steps


@pytest.mark.parametrize("text", ["", "0,", "x", "-1", "3-1", "1.5", "٣", "1--2", "all, 3"])
def test_measure_steps_that_say_nothing_are_refused(text):
    with pytest.raises(ValueError, match=r"measure_steps.*Write step numbers"):
        parse_steps(text, 10)


def test_a_step_that_the_run_does_not_have_is_refused():
    with pytest.raises(ValueError, match="step 10 does not exist, the run has 10 steps: 0 to 9"):
        parse_steps("0, 8-10", 10)


@given(st.sets(st.integers(0, 30), min_size=1))
def test_steps_are_sorted_and_counted_once(steps):
    text = ",".join(str(step) for step in [*steps, *steps])
    assert parse_steps(text, 31) == tuple(sorted(steps))


def test_sigmas_without_a_step_are_refused():
    with pytest.raises(ValueError, match="sigmas holds no step"):
        Start([], None, torch.tensor([]), {})


# Selection --------------------------------------------------------------------------------------------------------


@given(
    layer_lists,
    st.sampled_from(["all", *SELECTABLE]),
    st.sampled_from(["highest", "lowest"]),
    st.integers(0, 24),
    st.floats(0, 100),
)
def test_ranking_takes_the_extreme_layers_of_the_kind_and_earlier_ones_at_ties(layers, kind, select, count, percent):
    eligible = [each for each in layers if each.kind in SELECTABLE and kind in ("all", each.kind)]
    ranking = Ranking(kind, select, count, percent)
    if not eligible or count > len(eligible):
        with pytest.raises(RegistryError, match="kind" if not eligible else f"has {len(eligible)} "):
            rank(layers, ranking)
        return
    chosen = rank(layers, ranking)
    assert len(chosen) == (count or max(1, math.floor(len(eligible) * percent / 100)))
    sign = 1 if select == "highest" else -1
    for inside in (each for each in eligible if each.name in chosen):
        for outside in (each for each in eligible if each.name not in chosen):
            ours, theirs = sign * inside.figures.entropy, sign * outside.figures.entropy
            assert ours > theirs or (ours == theirs and inside.order < outside.order)
    assert set(chosen) <= {each.name for each in eligible}


@given(layer_lists.filter(lambda layers: any(each.kind in SELECTABLE for each in layers)))
def test_reselecting_keeps_the_figures_and_forgets_the_selection_before(layers):
    everything = reselect(registry(layers), Ranking("all", "highest", 0, 100))
    one = reselect(everything, Ranking("all", "lowest", 1))
    assert len(one.selected) == 1
    assert one == reselect(registry(layers), Ranking("all", "lowest", 1))
    assert [each.figures for each in one.layers] == [each.figures for each in layers]


def test_the_selector_of_a_registry_selects_the_same_sites_on_the_model(unet):
    sites = sites_of(unet)
    chosen = select_sites(sites, "middle, output.0-1", SELECTABLE)
    named = named_registry("BaseModel", "UNetModel", sites, chosen, "middle, output.0-1")
    assert named.selected == ("middle.0.attn1", "output.0.attn1", "output.1.attn1")
    assert select_sites(sites, named.selector, SELECTABLE) == chosen
    with pytest.raises(RegistryError, match="named, not measured"):
        reselect(named, Ranking())
