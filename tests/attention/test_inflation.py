"""Modules between a UNet's layers: STAM and Tune-A-Video's temporal attention in ComfyUI's own models."""

from dataclasses import replace

import comfy.model_management as management
import pytest
import torch
from coherence.attention.chunks import ChunkError
from coherence.attention.forms import TUNE_A_VIDEO, Form
from coherence.attention.inflation import InflationError, inflations_of, transformer_layers
from coherence.attention.sites import sites_of
from coherence.attention.tap import tap
from coherence.nodes.inflation import TuneAVideoInflate
from coherence.techniques.momentum import TemporalMomentum
from coherence.techniques.perturbation import UNIFORM, Perturbation
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from guidance_runs import agree, guided, one_by_one
from inflation_runs import put, random_weights, run
from tiny_models import FAMILIES, sample
from tuning_runs import EI2, FORMS
from watching import DEMO, difference, watched

MODERATE = torch.tensor([4.0, 1.0, 0.0])
STAM_FORM = Form("stam", "before_cross", "self")
IN_STAMS_PLACE = replace(TUNE_A_VIDEO, position="before_cross")


def demo():
    from coherence.demo.model import load_model

    return load_model()


@pytest.mark.parametrize("position", ["before_cross", "after_cross"])
def test_untuned_stam_is_the_plain_model_bitwise(position):
    model = demo()
    assert torch.equal(run(put(model, Form("stam", position, "self"))), run(model))


@pytest.mark.parametrize("position", ["after_feed_forward", "before_cross", "after_cross"])
def test_untuned_temporal_attention_is_the_plain_model_bitwise(position):
    model = demo()
    assert torch.equal(run(put(model, Form("temporal", position, "self"))), run(model))


@pytest.mark.parametrize("form", [STAM_FORM, Form("stam", "after_cross", "fine_coarse"), TUNE_A_VIDEO, IN_STAMS_PLACE])
def test_tuned_modules_change_the_clip_and_leave_the_users_model_bit_identical(form):
    model = demo()
    before = run(model)
    changed = run(put(model, form, random_weights(model, form)))
    assert difference(changed, before) > 0.02
    assert torch.equal(run(model), before)


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return demo()


# What it goes with ----------------------------------------------------------------------------------------------------


def patch(model):
    """A patch on a weight, as a LoRA is one; on a W_q that is tuned, too."""
    clone = model.clone()
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    change = 0.2 * torch.randn(128, 128, generator=torch.Generator().manual_seed(2))
    clone.add_patches({name: ("diff", (change,))})
    return clone


OTHERS = {
    "LoRA": patch,
    "momentum": lambda m: tap(m, TemporalMomentum(0.7), layers="*", kinds=["spatial"], asked_by="test")[0],
    "replaced": lambda m: tap(m, Perturbation(UNIFORM), layers="middle", kinds=["spatial"], asked_by="test")[0],
    "pag": lambda m: PerturbedAttentionGuidance.execute(m, 2.0)[0],
}


@FORMS
@pytest.mark.parametrize("other", OTHERS)
def test_the_order_of_nodes_does_not_matter(model, form, other):
    if other == "pag":  # it replaces attention by v, which has as many tokens as q in self-attention alone
        form = replace(form, frame_attention="self")
    weights, more = random_weights(model, form), OTHERS[other]
    alone = put(model, form, weights)
    first, last, without = (run(each, steps=1) for each in (put(more(model), form, weights), more(alone), alone))
    assert difference(first, last) < 1e-4
    assert difference(first, without) > 1e-3


def test_both_inflations_go_together_in_either_order(model):
    quiet, video = (Form("stam", "before_cross", "self"), Form("temporal", "after_feed_forward", "self"))
    both = [(quiet, random_weights(model, quiet)), (video, random_weights(model, video))]
    one, other = (put(put(model, *a), *b) for a, b in (both, both[::-1]))
    assert difference(run(one), run(other)) < 1e-4
    with pytest.raises(InflationError, match="already inflated with stam modules"):
        put(one, quiet)


def test_clones_share_the_weights(model):
    inflation = put(model, EI2, random_weights(model, EI2))
    clone = inflation.clone()
    (ours,), (theirs,) = (inflations_of(each.model_options["transformer_options"]) for each in (inflation, clone))
    assert ours.modules is theirs.modules
    (mine,), (its,) = (each.get_additional_models() for each in (inflation, clone))
    assert mine.model is its.model is ours.modules
    assert torch.equal(run(clone), run(inflation))


@FORMS
def test_its_temporal_attention_is_a_site_that_can_be_watched(model, form):
    inflation = put(model, form, random_weights(model, form))
    looked_at, watch = watched(inflation)
    assert torch.equal(run(looked_at), run(inflation))
    temporal = [call for call in watch.calls if call.site.kind == "temporal"]
    assert {call.site.name for call in temporal} == {
        f"{layer.place}.{form.module}" for layer in transformer_layers(model, "*")
    }
    rows = 2 * DEMO.latent_shape[2] * DEMO.latent_shape[3]
    assert temporal[0].q.shape == (rows, 3, 64)
    assert temporal[0].frame_indices == (0, 1, 2)
    names = [site.name for site in sites_of(inflation)][:3]
    after = {"stam": ["input.1.attn1", "input.1.stam", "input.1.attn2"]}
    assert names == after.get(form.module, ["input.1.attn1", "input.1.attn2", "input.1.temporal"])


def test_in_context_windows_each_window_is_a_clip_with_its_own_frames(model):
    inflation = put(model, TUNE_A_VIDEO, random_weights(model, TUNE_A_VIDEO))
    looked_at, watch = watched(inflation, kinds=["temporal"])
    windows = ContextWindowsManualNode.execute(
        looked_at, 4, 2, "standard_static", 1, False, "pyramid", 0, False, [], causal_window_fix=False
    ).result[0]
    run(windows, shape=(6, *DEMO.latent_shape[1:]), steps=1)
    assert {call.frame_indices for call in watch.calls} == {(0, 1, 2, 3), (2, 3, 4, 5)}


def test_a_clip_in_chunks_is_refused_as_it_needs_all_frames(model):
    inflation = put(model, STAM_FORM)
    chunked, _ = tap(inflation, TemporalMomentum(0.5, frames_per_batch=2), layers="*", kinds=["spatial"], asked_by="t")
    with pytest.raises(ChunkError, match=r"temporal attention \(input\.1\.stam\) needs all frames at once"):
        run(chunked)


@FORMS
def test_branches_are_computed_together_as_alone(model, form):
    """The prompts' lengths keep them from one call."""
    inflation = put(model, form, random_weights(model, form))
    positive, negative = DEMO.conditioning()
    alone = [[negative[0][0].repeat(1, 5, 1), {}]]
    together, apart = (run(inflation, conditioning=(positive, each)) for each in (negative, alone))
    assert difference(together, apart) < 1e-4


@pytest.mark.parametrize("layers", ["output.0", "*.*.{name}", "*.*.{name}, output.0"])
@FORMS
def test_guidance_by_copies_of_a_branch_is_the_guidance_branch_by_branch(model, form, layers):
    """At the model's own layers, at inserted ones, and at both."""
    form, layers = replace(form, frame_attention="self"), layers.format(name=form.module)  # else no map is an identity
    inflation = put(model, form, random_weights(model, form))
    reference = run(one_by_one(inflation, "U-I", 2.0, layers), sigmas=MODERATE)
    ours = run(guided(inflation, "U-I", 2.0, layers), sigmas=MODERATE)
    agree(ours, reference, run(inflation, sigmas=MODERATE))


# What it asks for -----------------------------------------------------------------------------------------------------


def test_at_strength_0_what_was_tuned_adds_nothing(model):
    quiet = Form("stam", "before_cross", "self")
    weights = random_weights(model, quiet)
    assert torch.equal(run(put(model, quiet, weights, strength=0.0)), run(model))
    half, whole = (run(put(model, quiet, weights, strength=s)) for s in (0.5, 1.0))
    assert difference(half, run(model)) > 0.01
    assert difference(half, whole) > 0.01


def test_layers_inflates_those_alone_and_takes_their_part_of_the_weights(model):
    weights = random_weights(model, EI2)
    some = put(model, EI2, weights, layers="middle, output.1")
    (inflation,) = inflations_of(some.model_options["transformer_options"])
    assert {name.rpartition(".")[0] for name in inflation.modules.names} == {"middle.0", "output.1"}
    assert difference(run(some), run(put(model, EI2, weights))) > 1e-3
    part = {name: x for name, x in weights.tensors.items() if name.startswith("middle")}
    with pytest.raises(InflationError, match=r"input\.1\.stam.* is missing.*set layers to what was tuned \(middle"):
        put(model, EI2, replace(weights, tensors=part))


def test_weights_that_do_not_fit_are_refused_with_both_sides(model):
    weights = random_weights(model, EI2)
    name = "input.1.stam.to_q.weight"
    wide = {**weights.tensors, name: torch.zeros(320, 320)}
    with pytest.raises(InflationError, match=rf"{name} is \(320, 320\), this model \(DemoConfig\) expects \(64, 64\)"):
        put(model, EI2, replace(weights, tensors=wide, base="SD15"))
    with pytest.raises(InflationError, match="tuned on SD15, this model is DemoConfig"):
        put(model, EI2, replace(weights, base="SD15"))
    with pytest.raises(InflationError, match=r"expected temporal attention.*got STAM.*Use STAMInflate"):
        put(model, TUNE_A_VIDEO, weights)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position", "after_cross"),
        ("norm", "frobenius"),
        ("frame_attention", "self"),
        ("frame_attention", "sparse_causal"),
        ("frame_attention", "first"),
        ("pool", 4),
    ],
)
def test_weights_are_used_as_they_were_tuned(model, name, value):
    """Otherwise the output differs for no visible reason: by 2 to 4 with another frame attention or pool."""
    weights, other = random_weights(model, EI2), replace(EI2, **{name: value})
    put(model, EI2, weights)
    tuned = getattr(EI2, name)
    with pytest.raises(
        InflationError,
        match=rf"^{name}: the weights were tuned with {tuned}, the node is set to {value}\. Set it to {tuned}",
    ):
        put(model, other, weights)


def test_the_pool_is_compared_where_there_is_one(model):
    first = replace(EI2, frame_attention="first", pool=4)
    put(model, replace(first, pool=2), random_weights(model, first))


def test_tune_a_videos_weights_of_another_kind_are_to_be_tuned_anew(model):
    ordered = replace(TUNE_A_VIDEO, frame_attention="self", ordered=True)
    with pytest.raises(InflationError, match=r"frame_attention: .* tuned with self, .* sparse_causal\. Tune anew\.$"):
        put(model, TUNE_A_VIDEO, random_weights(model, ordered))


def test_temporal_attention_is_used_where_it_was_tuned(model):
    """It makes another clip in every place."""
    there, here = (random_weights(model, form) for form in (IN_STAMS_PLACE, TUNE_A_VIDEO))
    node = TuneAVideoInflate.execute(model, "*", there, "before_cross")[0]
    assert torch.equal(run(node), run(put(model, IN_STAMS_PLACE, there)))
    assert difference(run(put(model, TUNE_A_VIDEO, here)), run(node)) > 1e-2
    with pytest.raises(InflationError, match=r"^position: .* with before_cross, .*\. Set it to before_cross"):
        TuneAVideoInflate.execute(model, "*", there)


class Stopped(Exception):
    """What went wrong in a run."""


@FORMS
@pytest.mark.parametrize("error", [Stopped, management.InterruptProcessingException])
def test_a_run_that_breaks_off_leaves_the_model_bit_identical(model, form, error):
    def breaks_off(q, *_, **__):
        raise error

    before = run(model)
    inflation = put(model, form, random_weights(model, form))
    inflated_before = run(inflation)
    broken = inflation.clone()
    broken.set_model_attn2_replace(breaks_off, "output", 0)
    with pytest.raises(error):
        run(broken)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert torch.equal(run(model), before)
    assert torch.equal(run(inflation), inflated_before)


# Other models ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_stock_checkpoints_are_inflated(tiny_models, family):
    stock, shape = tiny_models.load_stock(family), FAMILIES[family]
    before = sample(stock, shape, steps=1)
    assert torch.equal(sample(put(stock, STAM_FORM, layers="middle"), shape, steps=1), before)
    weights = replace(random_weights(stock, EI2, layers="middle"), base=shape.config)
    assert difference(sample(put(stock, EI2, weights, layers="middle"), shape, steps=1), before) > 1e-3
    assert torch.equal(sample(stock, shape, steps=1), before)


@pytest.mark.parametrize("family", ["svd", "wan21", "cogvideox"])
def test_video_models_are_refused(tiny_models, family):
    with pytest.raises(InflationError, match=rf"\({FAMILIES[family].config}\) already attends across frames"):
        put(tiny_models.load(family), STAM_FORM)


@pytest.mark.parametrize("family", ["flux", "anima"])
def test_image_transformers_are_refused_for_their_lack_of_a_unet(tiny_models, family):
    with pytest.raises(InflationError, match=rf"\({FAMILIES[family].config}\) has no UNet"):
        put(tiny_models.load(family), STAM_FORM)
