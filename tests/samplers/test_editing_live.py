"""Edits by a registry that ranks layers anew at each step, or chooses heads, on real models."""

from dataclasses import replace

import pytest
import torch
from coherence.attention.registry import Ranking, choice_for, reselect
from coherence.demo.model import load_model
from coherence.nodes.editing import EntropyGuidedEdit
from coherence.nodes.entropy_register import EntropyRegister
from coherence.nodes.flow_edit import FlowEdit
from coherence.nodes.plug_and_play import PlugAndPlay
from coherence.techniques.choice import Live
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from editing_runs import demo_run, tiny_run
from watching import difference


@pytest.fixture(scope="module")
def unet():
    return load_model()


def register(run, steps="0", **ranking):
    start = run.source, Noise_RandomNoise(3), run.sigmas, run.latents
    with torch.inference_mode():
        measured = EntropyRegister.execute(run.model, *start, "all", "lowest", 2, 50.0, steps, "exact").args[0]
    return reselect(measured, Ranking("all", "lowest", **{"count": 2} | ranking))


def edited(run, registry, model=None, **how):
    given = {"model": model or run.model, "source": run.source, "target": run.target, "negative": run.negative}
    given |= {"noise": Noise_RandomNoise(3), "sampler": sampler_object("euler"), "sigmas": run.sigmas}
    given |= {"latent_image": run.latents, "cfg": 4.0, "source_cfg": 1.0, "replace": "map", "registry": registry}
    with torch.inference_mode():
        return EntropyGuidedEdit.execute(**given | how).args[0]["samples"]


@pytest.mark.slow
def test_live_is_the_fixed_choice_at_one_step_and_another_one_at_more(unet):
    for steps, same in ((1, True), (4, False)):
        run = demo_run(unet, steps=steps)
        clips = [edited(run, register(run, live=live, count=3)) for live in (False, True)]
        assert torch.equal(*clips) == same


def test_a_step_has_the_layers_that_rank_first_in_the_source_at_the_step_before(unet, monkeypatch):
    run = demo_run(unet, steps=3)
    measured, chosen = register(run, "all", live=True, count=3), {}
    heads = Live.heads

    def told(self, call, position):
        found = heads(self, call, position)
        if found:
            chosen.setdefault(call.sigma, set()).add(call.site.name)
        return found

    monkeypatch.setattr(Live, "heads", told)
    edited(run, measured)
    levels = sorted(chosen, reverse=True)
    layers = [each for each in measured.layers if each.kind == "spatial"]
    assert chosen[levels[0]] == set(measured.selected)
    for step in (0, 1):
        ranked = sorted(layers, key=lambda layer: (layer.figures.by_step[step], layer.order))
        assert chosen[levels[step + 1]] == {layer.name for layer in ranked[:3]}


def test_all_heads_of_some_layers_are_these_layers_and_one_head_is_less(unet):
    run = demo_run(unet, steps=2)
    whole = register(run, count=2)
    number = sum(layer.heads for layer in whole.layers if layer.selected)
    by_head = reselect(whole, Ranking("all", "lowest", number, per_head=True))
    everything = tuple(
        {"selected": layer.selected, "selected_heads": tuple(range(layer.heads)) if layer.selected else None}
        for layer in whole.layers
    )
    layers = tuple(replace(layer, **each) for layer, each in zip(whole.layers, everything, strict=True))
    same = replace(by_head, layers=layers)
    assert torch.equal(edited(run, same), edited(run, whole))
    one = reselect(whole, Ranking("all", "lowest", 1, per_head=True))
    nothing = replace(whole, layers=tuple(replace(layer, selected=False) for layer in whole.layers))
    free, little, much = (edited(run, each) for each in (nothing, one, whole))
    assert 0 < difference(little, free) < difference(much, free)


def test_plug_and_play_and_flow_edit_take_such_a_registry(unet, tiny_models):
    run = demo_run(unet, steps=2)
    registry = register(run, live=True, per_head=True, count=4)
    assert len(choice_for(unet, registry, "test")[0].split(", ")) > len(registry.selected)
    patched = PlugAndPlay.execute(unet, True, "", registry=registry).args[0]
    nothing = {"replace": "cross_map"}
    assert difference(edited(run, registry, patched, **nothing), edited(run, registry, **nothing)) > 0.001
    flow = tiny_run(tiny_models, "wan21")
    clip = {"samples": torch.randn(flow.shape, generator=torch.Generator().manual_seed(5))}
    clips = []
    for how in (None, {"live": False}, {"live": True}):
        given = None if how is None else register(flow, per_head=True, count=6, **how)
        prompts = flow.source, flow.target, flow.negative
        with torch.inference_mode():
            out = FlowEdit.execute(flow.model, *prompts, clip, flow.sigmas[1:], 1.0, 1.0, 0, 1, 7, given)
        clips.append(out.args[0]["samples"])
    free, fixed, live = clips
    assert difference(fixed, free) > 1e-4
    assert torch.equal(fixed, live), "one step has the registry's own choice"
