"""The tap on real ComfyUI models: stacking, other packs' patches, and leaving no trace."""

import comfy.ldm.modules.attention
import comfy.samplers
import pytest
import torch
from coherence.attention.sites import NoSuchSiteError, list_sites
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.momentum import TemporalMomentum, average_over_frames, momentum_matrix
from coherence.techniques.technique import Stage, Technique
from comfy.patcher_extension import WrappersMP
from tiny_models import FAMILIES, sample
from watching import DEMO, Watch, difference

SD15 = FAMILIES["sd15"]


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def plain(unet):
    return sample(unet, DEMO)


def momentum(model, mu=0.8, **where):
    where = {"layers": "*", "kinds": ["spatial"], "asked_by": "test", **where}
    return tap(model, TemporalMomentum(mu), **where)[0]


def hooked(model):
    """The modules that still have a hook."""
    return [module for module in model.get_model_object("diffusion_model").modules() if module._forward_pre_hooks]


def reference_momentum(model, mu):
    """The same through ComfyUI's attn1_patch: averages what the projections see, which is as good, they are linear."""

    def patch(n, context, value, extra):
        frames = len(n) // len(extra["cond_or_uncond"])
        weights = momentum_matrix(torch.full((frames,), mu, dtype=torch.float64))
        return n, average_over_frames(context, weights), average_over_frames(value, weights)

    clone = model.clone()
    clone.set_model_attn1_patch(patch)
    return clone


@pytest.mark.parametrize("family", ["sd15", "sd20", "sdxl"])
def test_momentum_equals_averaging_before_the_projections(tiny_models, family):
    model = tiny_models.load(family)
    ours, reference = (
        sample(momentum(model), FAMILIES[family]),
        sample(reference_momentum(model, 0.8), FAMILIES[family]),
    )
    unpatched = sample(model, FAMILIES[family])
    assert difference(ours, reference) < 1e-4
    assert difference(reference, unpatched) > 1e-2


def test_an_observer_leaves_the_output_bit_identical_and_sees_every_site(unet, plain):
    watch = Watch()
    model, sites = tap(unet, watch, layers="*", kinds=["spatial", "cross"], asked_by="test")
    assert torch.equal(sample(model, DEMO), plain)
    one_call = watch.calls[: len(sites)]
    assert [call.site.name for call in one_call] == [site.name for site in sites]
    for call in one_call:
        assert call.frames == DEMO.latent_shape[0]
        assert len(call.q) == call.frames * len(call.branches)
        assert sorted(index for index, _ in call.branches) == [0, 1]


def test_after_a_run_the_users_model_is_bit_identical(unet, plain):
    sample(momentum(unet), DEMO)
    assert torch.equal(sample(unet, DEMO), plain)
    assert not hooked(unet)


def test_after_an_error_inside_attention_the_users_model_is_bit_identical(unet, plain):
    class Fail(Technique):
        def attend(self, call, proceed):
            raise RuntimeError("boom")

    model, _ = tap(unet, Fail(), layers="middle", kinds=["spatial"], asked_by="test")
    with pytest.raises(RuntimeError, match="boom"):
        sample(model, DEMO)
    assert not hooked(unet)
    assert torch.equal(sample(unet, DEMO), plain)


def test_cond_and_uncond_together_or_split_give_the_same(unet, monkeypatch):
    model = momentum(unet)
    together = sample(model, DEMO)
    calls = []

    def one_row_at_a_time(apply_model, args):
        calls.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(one_row_at_a_time)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    split = sample(model, DEMO)
    assert set(calls) == {1}
    assert difference(split, together) < 1e-4


def test_two_techniques_stack_in_the_order_of_the_nodes_within_a_stage(unet):
    where = {"layers": "*", "kinds": ["spatial"], "asked_by": "test"}
    momentum_first = tap(momentum(unet, 0.5), CrossFrame("first"), **where)[0]
    # averages start at frame 1, so "the first frame's average" is frame 1
    assert difference(sample(momentum_first, DEMO), sample(tap(unet, CrossFrame("first"), **where)[0], DEMO)) < 1e-4


def test_stages_order_techniques_whatever_the_nodes_order(unet):
    early, late = Watch(), Watch()
    early.stage, late.stage = Stage.KEYS, Stage.FURTHER_KEYS
    where = {"layers": "middle", "kinds": ["spatial"], "asked_by": "test"}
    seen = []
    early.attend = lambda call, proceed: seen.append("early") or proceed(call.q, call.k, call.v)
    late.attend = lambda call, proceed: seen.append("late") or proceed(call.q, call.k, call.v)
    model = tap(tap(unet, late, **where)[0], early, **where)[0]
    sample(model, DEMO, steps=1)
    assert seen == ["early", "late"]


def test_another_packs_attention_override_keeps_working(unet, plain):
    def override(func, q, k, v, heads, **kwargs):
        return func(q, k, v * 1.5, heads, **kwargs)

    def overridden(model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone

    before, after = sample(momentum(overridden(unet)), DEMO), sample(overridden(momentum(unet)), DEMO)
    assert torch.equal(before, after)
    assert difference(before, sample(momentum(unet), DEMO)) > 1e-2
    assert difference(before, sample(overridden(unet), DEMO)) > 1e-2


def test_another_packs_replacement_runs_inside_whichever_node_came_first(unet):
    """As PAG and RAVE-style packs do: attn1_replace at one block."""

    def replacement(q, k, v, extra):
        return comfy.ldm.modules.attention.optimized_attention(q, k.flip(-2), v, extra["n_heads"])

    def replaced(model):
        clone = model.clone()
        clone.set_model_attn1_replace(replacement, "middle", 0)
        return clone

    before, after = sample(momentum(replaced(unet)), DEMO), sample(replaced(momentum(unet)), DEMO)
    assert torch.equal(before, after)
    assert difference(before, sample(momentum(unet), DEMO)) > 1e-3
    assert difference(before, sample(replaced(unet), DEMO)) > 1e-3


def test_core_pag_stacks_in_both_orders(unet):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def pag(model):
        return PerturbedAttentionGuidance.execute(model, 3.0).result[0]

    before, after = sample(momentum(pag(unet)), DEMO), sample(pag(momentum(unet)), DEMO)
    assert torch.equal(before, after)
    assert difference(before, sample(momentum(unet), DEMO)) > 1e-3


def test_lora_and_controlnet_stack(tiny_models):
    import nodes

    sd15 = tiny_models.load("sd15")
    positive, negative = SD15.conditioning()
    hint = torch.rand(SD15.latent_shape[0], 128, 128, 3, generator=torch.Generator().manual_seed(0))
    apply = nodes.ControlNetApplyAdvanced()
    controlled = apply.apply_controlnet(positive, negative, tiny_models.load_controlnet(), hint, 1.0, 0.0, 1.0)
    model = tiny_models.load_lora(sd15)
    ours = sample(momentum(model), SD15, conditioning=controlled)
    reference = sample(reference_momentum(model, 0.8), SD15, conditioning=controlled)
    assert difference(ours, reference) < 1e-4
    assert difference(ours, sample(momentum(sd15), SD15)) > 1e-3


def test_outside_start_and_end_percent_it_is_the_plain_model_bitwise(unet):
    """What the network gives at the first step of two, and at the second."""

    def outputs(model):
        clone, given = model.clone(), []

        def note(executor, *args, **kwargs):
            given.append(executor(*args, **kwargs))
            return given[-1]

        clone.add_wrapper(WrappersMP.DIFFUSION_MODEL, note)
        sample(clone, DEMO)
        return given

    plain, early, late = map(outputs, (unet, momentum(unet, end_percent=0.3), momentum(unet, start_percent=0.3)))
    assert [torch.equal(*pair) for pair in zip(plain, late, strict=True)] == [True, False]
    assert not torch.equal(early[0], plain[0])


def test_layers_limit_where_it_acts(unet):
    watch = Watch()
    model, sites = tap(unet, watch, layers="middle, output.1-2", kinds=["spatial"], asked_by="test")
    sample(model, DEMO, steps=1)
    assert {call.site.name for call in watch.calls} == {site.name for site in sites}
    assert all(site.name.startswith(("middle.0", "output.1.", "output.2.")) for site in sites)


def test_percentages_out_of_order_are_refused(unet):
    with pytest.raises(ValueError, match=r"start_percent is 0\.6"):
        momentum(unet, start_percent=0.6, end_percent=0.4)


class Skipped(torch.nn.Module):
    def forward(self, x, *_args, **_kwargs):
        return x


def test_a_site_that_was_never_reached_raises_when_the_run_ends(unet):
    """Another pack may skip a block, attention and all."""
    model = momentum(unet)
    tree = model.get_model_object("diffusion_model")
    (attention,) = (site.module for site in list_sites(tree) if site.name == "middle.0.attn1")
    place = next(name for name, module in tree.named_modules() if module is attention)
    model.add_object_patch(f"diffusion_model.{place.partition('.transformer_blocks')[0]}", Skipped())
    with pytest.raises(NoSuchSiteError, match=r"never reached.*middle\.0"):
        sample(model, DEMO)
