"""Editing with prompts that ComfyUI cannot put into one model call: they go through the model in step."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from animatediff_layout import animate
from coherence.attention import families
from coherence.attention.forms import TUNE_A_VIDEO
from coherence.attention.sites import family_of as family_of_model
from coherence.demo.model import load_model
from coherence.samplers.lockstep import Lockstep, NothingToTakeError
from coherence.samplers.lora_steps import with_lora
from coherence.techniques.pairs import Pairs, UnpairedBranchError
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from editing_runs import StoredMaps, demo_run, halves, longer, stepwise, tiny_run, told_in
from inflation_runs import put, random_weights
from random_lora import lora_for
from tiny_models import FAMILIES, RELATIVES
from watching import difference

WITHOUT = {"sd15", "sd20", "sdxl", "svd", "MiniMax H3"}
"""SVD's prompt is one token, MiniMax H3 refuses edits, and the demo model is of the other UNets' class."""
EDITED = ["eps", "animatediff", *(name for name in (*FAMILIES, *RELATIVES) if name not in WITHOUT)]
EXACT = 1e-4
FURTHER = 3  # tokens of the target's prompt


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture
def run_of(tiny_models, unet):
    """Source and target differ in length, and so do they and the negative."""

    def run_of(name, **settings):
        run = run_on(tiny_models, unet, name, **settings)
        return replace(run, target=longer(run.target, FURTHER), negative=longer(run.negative, 1))

    return run_of


def run_on(tiny_models, unet, name, **settings):
    """On the demo model, on it with AnimateDiff's motion, or on a small model of a family."""
    if name in ("eps", "animatediff"):
        return demo_run(animate(unet) if name == "animatediff" else unet, **settings)
    return tiny_run(tiny_models, name, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITED)
def test_prompts_of_20_and_23_tokens_edit_as_with_all_maps_in_memory(tiny_models, unet, name):
    """From where float32 does not cancel."""
    run = told_in(run_on(tiny_models, unet, name, start=0.2), 20, 23, 21)
    target, source = run.edit()
    expected, plain = stepwise(run, StoredMaps(), "*", 4.0, 4.0)
    assert difference(run.edit(layers="")[0], expected) > 200 * EXACT
    assert difference(source, plain) < EXACT
    assert difference(target, expected) < EXACT


def test_every_family_that_takes_edits_is_among_them(tiny_models, unet):
    def family_of(name):
        model = unet if name in ("eps", "animatediff") else tiny_models.load(name)
        return family_of_model(model.get_model_object("diffusion_model")).name

    assert {family_of(name) for name in EDITED} == {family.name for family in families.FAMILIES if not family.one_row}


@pytest.mark.parametrize("what", ["key_value", "value"])
@pytest.mark.parametrize("name", ["wan21", "flux"])
def test_what_else_is_taken_is_taken_from_the_picture(run_of, name, what):
    run = run_of(name)
    target, source = run.edit(replace=what)
    assert difference(target, run.edit(layers="")[0]) > 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3


def test_in_step_is_as_in_one_call(run_of, monkeypatch):
    """Equal lengths, in calls of their own all the same."""
    run = run_of("flux")
    run = replace(run, source=longer(run.source, FURTHER), negative=longer(run.negative, FURTHER - 1))
    together = run.edit()
    usual = Pairs.donors

    def never_in_one_call(self, branches):
        if len(branches) > 1:
            raise UnpairedBranchError("kept apart")
        return usual(self, branches)

    monkeypatch.setattr(Pairs, "donors", never_in_one_call)
    for apart, one in zip(run.edit(), together, strict=True):
        assert difference(apart, one) < 1e-3


@pytest.mark.parametrize("what", ["lora", "inflation"])
def test_what_other_nodes_add_to_layers_is_added_once(unet, what):
    """Both calls run through the same modules, with the hooks of both on them."""
    if what == "lora":
        changed = with_lora(unet, lora_for(unet, gain=0.05), 1.0, 0.0, 1.0, "test")
    else:
        changed = put(unet, TUNE_A_VIDEO, random_weights(unet, TUNE_A_VIDEO, scale=0.1))
    run = demo_run(changed)
    _, source = replace(run, target=longer(run.target, FURTHER)).edit()
    assert difference(source, run.plain(run.source)) < 1e-3
    assert difference(source, demo_run(unet).plain(run.source)) > 1e-2


def test_a_cross_map_of_other_lengths_is_refused_with_the_numbers(run_of):
    with pytest.raises(UnpairedBranchError, match=r"32 and 35.*same number of tokens"):
        run_of("eps").edit(replace="cross_map")


def test_areas_of_one_clip_alone_are_refused(run_of):
    """ComfyUI gives the other clip each of these areas, too."""
    run = run_of("eps")
    with pytest.raises(UnpairedBranchError, match="the same areas"):
        replace(run, target=halves(run.target)).edit()


@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_areas_go_in_step_in_whichever_order_they_are_combined(run_of, source_cfg):
    run = run_of("eps")
    sources, targets = ([*prompt, *halves(prompt)[:1]] for prompt in (run.source, run.target))
    edit = replace(run, source=sources, target=targets).edit(source_cfg=source_cfg)[0]
    other = replace(run, source=sources, target=targets[::-1]).edit(source_cfg=source_cfg)[0]
    assert difference(other, edit) < 1e-4
    assert (
        difference(replace(run, source=sources, target=targets).edit(layers="", source_cfg=source_cfg)[0], edit) > 0.01
    )


def test_context_windows_cut_both_clips_alike(run_of):
    run = run_of("wan21")
    windowed = ContextWindowsManualNode.execute(
        run.model, 2, 1, "standard_static", 1, False, "pyramid", 2, False, [], causal_window_fix=False
    ).result[0]
    run = replace(run, model=windowed)
    target, source = run.edit()
    assert difference(source, run.plain(run.source)) < 1e-3
    assert difference(target, run.edit(layers="")[0]) > 1e-3


@pytest.mark.parametrize("error", [RuntimeError("stopped"), InterruptProcessingException()])
@pytest.mark.parametrize("call", range(1, 5))
def test_after_an_error_in_either_clip_nothing_is_left(run_of, error, call):
    """Whichever call of a step it is in."""
    run, seen, threads = run_of("eps"), [], threading.active_count()

    def fails(apply_model, args):
        seen.append(args)
        if len(seen) == call:
            raise error
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = run.model.clone()
    model.set_model_unet_function_wrapper(fails)
    with pytest.raises(type(error)):
        replace(run, model=model).edit()
    assert len(seen) == call
    assert threading.active_count() == threads
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())
    assert model.model_options["model_function_wrapper"] is fails


def test_lockstep_hands_over_one_thing_at_a_time_in_order():
    lockstep, seen = Lockstep(), []

    def source():
        for n in range(3):
            seen.append(f"made {n}")
            lockstep.give(n)
        seen.append("source ends")
        return "source"

    def target():
        for _ in range(2):
            seen.append(f"took {lockstep.take()}")
        return "target"

    assert lockstep.run(source, target) == ("source", "target")
    assert seen == ["made 0", "took 0", "made 1", "took 1", "made 2", "source ends"]
    assert not lockstep.is_running


def test_a_target_that_takes_nothing_runs_before_the_source():
    seen = []
    Lockstep().run(lambda: seen.append("source"), lambda: seen.append("target"))
    assert seen == ["target", "source"]


def test_taking_what_nobody_gives_is_an_error():
    lockstep = Lockstep()
    with pytest.raises(NothingToTakeError):
        lockstep.run(lambda: None, lockstep.take)


def test_an_error_of_the_source_is_the_targets_and_of_the_source_after_it():
    lockstep = Lockstep()

    def fails():
        raise KeyError("source")

    with pytest.raises(KeyError):
        lockstep.run(fails, lockstep.take)
    with pytest.raises(KeyError):
        lockstep.run(fails, lambda: None)


def test_modes_of_autograd_are_the_same_in_both():
    lockstep = Lockstep()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            here = (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
            there, _ = lockstep.run(lambda: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()), lambda: None)
        assert there == here
