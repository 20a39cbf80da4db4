"""What newer versions of ComfyUI have around attention, each as a small stand-in: honoured where it exists."""

from __future__ import annotations

from collections import OrderedDict
from copy import copy
from functools import partial
from types import SimpleNamespace

import comfy.model_prefetch
import pytest
import torch
from coherence.attention.keys import OPEN_TAP, OVERRIDE
from coherence.attention.sites import sites_of
from coherence.attention.tap import _tapped_call, tap
from coherence.demo.model import load_model
from coherence.samplers.lora_steps import with_lora
from coherence.techniques.momentum import TemporalMomentum
from coherence.training.sampler import _differentiable
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from random_lora import lora_for
from tiny_models import FAMILIES, sample
from watching import DEMO, Watch, difference, watched


@pytest.fixture(scope="module")
def unet():
    return load_model()


def changed(arguments, **more):
    """Positional arguments of a diffusion model, with more in the transformer options among them."""
    return [{**each, **more} if isinstance(each, dict) and "uuids" in each else each for each in arguments]


def softly(func, q, k, v, heads, *args, **kwargs):
    """Another attention: with half the queries."""
    return func(0.5 * q, k, v, heads, *args, **kwargs)


def test_what_is_kept_is_allocated_outside_of_the_graph_of_a_block(unet, monkeypatch):
    """ComfyUI's pause does not nest: who pauses twice and resumes once goes on recording."""
    depth, deepest, during = 0, 0, []

    class Pause:
        def __enter__(self):
            nonlocal depth, deepest
            depth, deepest = depth + 1, max(deepest, depth + 1)

        def __exit__(self, *_):
            nonlocal depth
            depth -= 1

    class Look(Watch):
        def attend(self, call, proceed):
            during.append(depth)
            return super().attend(call, proceed)

    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", Pause, raising=False)
    where = {"layers": "middle", "kinds": ["spatial"], "asked_by": "test"}
    model = tap(unet, TemporalMomentum(0.8, "", 2), **where)[0]
    model = tap(model, Look(), **where)[0]
    sample(model, DEMO, steps=1)
    assert during
    assert set(during) == {1}
    assert (depth, deepest) == (0, 1)


@pytest.mark.parametrize("name", ["flux", "ltxv", "krea2"])
def test_the_attention_that_a_checkpoint_asks_for_runs_below_the_techniques(tiny_models, name):
    """ComfyUI's ``ComfyAttention`` of a module, which it passes over where an override is."""
    family, model = FAMILIES[name], tiny_models.load(name)
    plain = sample(model, family, steps=1)
    for site in sites_of(model):
        holder = next((each for each in site.module.modules() if "ttention" in type(each).__name__), site.module)
        holder.comfy_attention = SimpleNamespace(function=partial(softly, attention_pytorch))
    asked = model.clone()
    asked.model_options["transformer_options"][OVERRIDE] = softly
    wanted = sample(asked, family, steps=1)
    assert difference(wanted, plain) > 1e-3
    assert difference(sample(watched(model)[0], family, steps=1), wanted) < 1e-5
    other = model.clone()
    other.model_options["transformer_options"][OVERRIDE] = lambda func, *args, **kwargs: func(*args, **kwargs)
    assert difference(sample(watched(other)[0], family, steps=1), plain) < 1e-5


def test_a_backend_that_takes_containers_is_given_tensors(unet):
    """ComfyUI hands containers to overrides with a ``container_function``; ours has none, whatever lies inside."""

    def backend(_func, *args, **kwargs):
        seen.update(map(type, args[:3]))
        return attention_pytorch(*args, **kwargs)

    backend.container_function = None
    seen, overrides = set(), []

    def note(executor, *args, **kwargs):
        overrides.extend(each[OVERRIDE] for each in args if isinstance(each, dict) and OVERRIDE in each)
        return executor(*args, **kwargs)

    model = unet.clone()
    model.model_options["transformer_options"][OVERRIDE] = backend
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, note)
    sample(watched(model)[0], DEMO, steps=1)
    assert seen == {torch.Tensor}
    assert overrides
    assert not any(hasattr(each, "container_function") for each in overrides)


def test_an_override_that_a_node_puts_in_place_anew_runs_below_the_techniques(unet):
    """As block-sparse attention does in every step; here inside of the tap, where it would take our place."""

    def put(executor, *args, **kwargs):
        return executor(*changed(args, **{OVERRIDE: softly}), **kwargs)

    theirs = unet.clone()
    theirs.add_wrapper(WrappersMP.DIFFUSION_MODEL, put)
    wanted, (model, watch) = sample(theirs, DEMO, steps=1), watched(theirs)
    assert difference(wanted, sample(unet, DEMO, steps=1)) > 1e-3
    assert torch.equal(sample(model, DEMO, steps=1), wanted)
    assert {call.site.name for call in watch.calls} == {site.name for site in sites_of(unet)}


def test_self_attention_that_a_guidance_skips_was_not_hidden_from_us(tiny_models):
    """LTXV's guidance tells some calls to return the values: what runs and does not attend is no error."""
    family, model = FAMILIES["ltxv"], tiny_models.load("ltxv")

    def values_if_told(attention, forward, x, **kwargs):
        if kwargs["transformer_options"].get("stg_skip_self_attn"):
            return attention.to_out(attention.to_v(x))
        return forward(x, **kwargs)

    for block in model.get_model_object("diffusion_model").transformer_blocks:
        block.attn1.forward = partial(values_if_told, block.attn1, block.attn1.forward)
    calls = []

    def first_call_skips(executor, *args, **kwargs):
        calls.append(True)
        return executor(*changed(args, stg_skip_self_attn=len(calls) == 1), **kwargs)

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, first_call_skips)
    looked, watch = watched(model)
    assert sample(looked, family, steps=2).isfinite().all()
    assert [call.site.name for call in watch.calls].count("blocks.0.attn1") == len(calls) - 1


@pytest.mark.parametrize("told_by", ["conditioning", "model"])
def test_packed_latents_are_told_by_the_conditioning_or_by_the_model(tiny_models, monkeypatch, told_by):
    model, shapes = tiny_models.load_ltxav().model, [(1, 128, 3, 4, 4), (1, 8, 5, 16)]
    monkeypatch.setattr(model, "latent_shapes", shapes if told_by == "model" else None, raising=False)
    tapped, _ = watched(tiny_models.load_ltxav(), layers="blocks.0.attn1")
    options = {**tapped.model_options["transformer_options"], "cond_or_uncond": [0], "uuids": [0]}
    seen = []

    class Executor:
        class_obj = model

        def __call__(self, *args, **_kwargs):
            seen.append(args[-1][OPEN_TAP]._clip)
            return args[0]

    inputs = (torch.zeros(1, 1, 128 * 48 + 640), torch.tensor([0.5]), None, torch.zeros(1, 20, 512), None)
    _tapped_call(Executor(), inputs, {"latent_shapes": shapes} if told_by == "conditioning" else {}, options)
    assert [(clip.frame_indices, clip.grid) for clip in seen] == [((0, 1, 2), (4, 4))]


def test_a_layer_that_runs_without_being_called_is_not_silently_left_without_its_adapter(unet):
    """ComfyUI may fuse a layer with quantised weights, and then calls no ``forward``, and no hook."""
    model = unet.clone()
    model = with_lora(model, lora_for(model, "down"), 1.0, 0.0, 1.0, "Node")
    assert difference(sample(model, DEMO, steps=1), sample(unet, DEMO, steps=1)) > 1e-4
    attention = next(site.module for site in sites_of(unet) if site.name.startswith("input"))
    query, forward = attention.to_q, attention.forward
    fused = copy(query)  # what is called is another object than what carries the hooks
    fused._forward_hooks = OrderedDict()

    def without_a_call(*args, **kwargs):
        attention._modules["to_q"] = fused
        try:
            return forward(*args, **kwargs)
        finally:
            attention._modules["to_q"] = query

    attention.forward = without_a_call
    try:
        with pytest.raises(ValueError, match=r"Node: 1 layers ran without the adapter.*attn1\.to_q.*bf16 or fp16"):
            sample(model, DEMO, steps=1)
    finally:
        del attention.forward


class Detached(torch.autograd.Function):
    """A kernel without a backward pass."""

    @staticmethod
    def forward(_ctx, q, k, v):
        return attention_pytorch(q, k, v, 2)


def of_comfyui(_func, q, k, v, heads, **_kwargs):
    return Detached.apply(q, k, v)


of_comfyui.__module__ = "comfy.model_patcher"


def of_a_pack(_func, q, k, v, heads, **_kwargs):
    return attention_pytorch(q.detach(), k.detach(), v.detach(), heads)


@pytest.mark.parametrize(("override", "scale"), [(None, 1.0), (of_comfyui, 1.0), (of_a_pack, 1.0), (softly, 0.5)])
def test_gradients_pass_whatever_attention_was_chosen_for_sampling(override, scale):
    q, k, v = torch.randn(3, 2, 9, 16, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    out = _differentiable(override)(None, q, k, v, 2)
    expected = attention_pytorch(scale * q, k, v, 2)
    assert torch.equal(out, expected)
    got, wanted = (torch.autograd.grad(each.square().sum(), (q, k, v)) for each in (out, expected))
    assert all(map(torch.equal, got, wanted))
