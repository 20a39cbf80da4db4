"""Editing among what a host has: samplers, masks, areas, ControlNets, context windows, guidance, little memory."""

import os
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import pytest
import torch
from animatediff_layout import find_packs
from coherence.demo.model import load_model
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.samplers.editing import Edit, EditGuider, Prompts, sample_edit
from coherence.samplers.ie_guidance import guide
from coherence.samplers.pairing import PairSampler
from comfy.k_diffusion.sampling import sample_euler
from comfy.model_management import InterruptProcessingException
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from comfy.samplers import KSAMPLER, sampler_object
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from editing_runs import demo_run, halves, tiny_run
from watching import DEMO, difference, watched

from nodes import ConditioningSetMask, ConditioningSetTimestepRange, ControlNetApplyAdvanced

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture
def run(unet):
    return demo_run(unet)


# Masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "euler_cfg_pp", "dpmpp_sde"])
@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_outside_the_mask_the_target_is_the_source_bitwise(unet, sampler, source_cfg):
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    run = demo_run(unet, sampler=sampler, steps=4)
    target, source = run.edit(mask=mask, source_cfg=source_cfg)
    assert torch.equal(target[..., :4], source[..., :4])
    assert difference(target[..., 4:], source[..., 4:]) > 0.05
    assert torch.equal(source, run.edit(source_cfg=source_cfg)[1])


def test_a_mask_may_have_a_frame_for_each(run):
    mask = torch.zeros(3, 16, 16)
    mask[1] = 1
    target, source = run.edit(mask=mask)
    same = [torch.equal(*pair) for pair in zip(target, source, strict=True)]
    assert same == [True, False, True]
    whole = run.edit(mask=torch.ones(40, 24))[0]
    assert torch.equal(whole, run.edit()[0])


def test_a_mask_holds_on_latents_of_videos(tiny_models):
    mask = torch.zeros(64, 64)
    mask[:32] = 1
    target, source = tiny_run(tiny_models, "wan21").edit(mask=mask)
    assert torch.equal(target[..., 8:, :], source[..., 8:, :])
    assert difference(target[..., :8, :], source[..., :8, :]) > 0.05


def test_a_mask_for_each_frame_holds_on_pictures_with_video_latents(tiny_models):
    """The sampler gives their frames an axis of one frame each."""
    mask = torch.zeros(3, 16, 16)
    mask[1] = 1
    run = tiny_run(tiny_models, "qwen_image", shape=(3, 16, 1, 16, 16))
    target, source = run.edit(layers="", mask=mask)
    assert torch.equal(target[[0, 2]], source[[0, 2]])
    assert difference(target[1], source[1]) > 1e-3
    with pytest.raises(ValueError, match="mask has 2 frames and latent_image 3"):
        run.edit(layers="", mask=mask[:2])


def test_a_mask_of_other_frames_is_refused(run):
    with pytest.raises(ValueError, match="mask has 2 frames and latent_image 3"):
        run.edit(mask=torch.ones(2, 16, 16))


# Conditionings -------------------------------------------------------------------------------------------------


def test_areas_and_combined_prompts_are_paired_entry_by_entry(run):
    run = replace(run, source=halves(run.source), target=halves(run.target))
    target, source = run.edit(layers="")
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3
    assert difference(*replace(run, target=run.source).edit()) < 1e-4  # threads round the rows of small areas apart
    assert difference(run.edit()[0], target) > 0.01


def masked_halves(prompt):
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    return [
        entry for mask in (left, 1 - left) for entry in ConditioningSetMask().append(prompt, mask, "default", 1.0)[0]
    ]


def timed_halves(prompt):
    spans = ((0.0, 0.5), (0.5, 1.0))
    return [entry for span in spans for entry in ConditioningSetTimestepRange().set_range(prompt, *span)[0]]


@pytest.mark.parametrize("parts", [halves, masked_halves, timed_halves])
def test_prompts_in_parts_are_edited_where_the_source_has_no_negative(run, parts):
    run = replace(run, source=parts(run.source), target=parts(run.target))
    target, source = run.edit(source_cfg=1.0)
    free, plain = run.edit(layers="", source_cfg=1.0)
    assert difference(source, plain) < 1e-3
    assert difference(plain, run.plain(run.source, cfg=1.0)) < 1e-3
    assert difference(target, free) > 0.01


@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_an_edit_is_the_same_in_whichever_order_areas_are_combined(run, source_cfg):
    sources, targets = ([*halves(prompt)[:1], *prompt] for prompt in (run.source, run.target))
    edits = [
        replace(run, source=source, target=target).edit(source_cfg=source_cfg)[0]
        for source in (sources, sources[::-1])
        for target in (targets, targets[::-1])
    ]
    assert all(difference(each, edits[0]) < 1e-4 for each in edits)
    free = replace(run, source=sources, target=targets).edit(layers="", source_cfg=source_cfg)[0]
    assert difference(edits[0], free) > 0.01


def test_the_entries_of_a_combined_target_may_share_a_single_source(run):
    assert run.edit()[0].shape == replace(run, target=run.target + run.negative).edit()[0].shape
    with pytest.raises(ValueError, match="source combines 2 conditionings and target 3"):
        replace(run, source=run.source * 2, target=run.target * 3).edit()


@pytest.mark.slow
def test_a_controlnet_sees_each_clip_as_it_does_alone(tiny_models):
    run = tiny_run(tiny_models, "sd15")
    hint = torch.rand(3, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    control = tiny_models.load_controlnet()
    apply = ControlNetApplyAdvanced().apply_controlnet
    target, negative = apply(run.target, run.negative, control, hint, 1.0, 0.0, 1.0)
    source, _ = apply(run.source, run.negative, control, hint, 1.0, 0.0, 1.0)
    of_target = negative[0][1]["control"]
    source[0][1]["control"] = of_target  # as one node for three conditionings would have it
    controlled = replace(run, source=source, target=target, negative=negative)
    both = controlled.edit(layers="")
    assert difference(both[0], controlled.plain(target)) < 1e-3
    assert difference(both[1], controlled.plain(source)) < 1e-3
    assert difference(both[0], run.edit(layers="")[0]) > 0.01


@pytest.mark.slow
def test_a_controlnet_may_be_on_one_clip_alone(tiny_models):
    run = tiny_run(tiny_models, "sd15")
    hint = torch.rand(3, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    target, _ = ControlNetApplyAdvanced().apply_controlnet(
        run.target, run.negative, tiny_models.load_controlnet(), hint, 1.0, 0.0, 1.0
    )
    run = replace(run, target=target)
    assert difference(run.edit()[1], run.plain(run.source)) < 1e-3
    assert difference(run.edit(layers="")[0], run.plain(target)) < 1e-3


def test_prompts_of_different_masked_lengths_share_a_cross_attention_map(tiny_models):
    run = tiny_run(tiny_models, "ltxv")
    shorter = run.source[0][1]["attention_mask"].clone()
    shorter[:, 12:] = 0
    run = replace(run, target=[[run.target[0][0], {**run.target[0][1], "attention_mask": shorter}]])
    assert difference(run.edit(replace="cross_map")[0], run.edit(layers="")[0]) > 1e-4


# Other nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dim"), [("demo", 0), ("wan21", 2)])
def test_context_windows_cut_both_clips_alike(unet, tiny_models, name, dim):
    run = demo_run(unet, shape=(5, *DEMO.latent_shape[1:])) if name == "demo" else tiny_run(tiny_models, name)
    windowed = ContextWindowsManualNode.execute(
        run.model, 2, 1, "standard_static", 1, False, "pyramid", dim, False, [], causal_window_fix=False
    ).result[0]
    run = replace(run, model=windowed)
    target, source = run.edit(layers="")
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3
    assert torch.equal(*replace(run, target=run.source).edit())


def test_guidance_that_only_mixes_results_works_on_each_clip(run):
    run = replace(run, model=RescaleCFG().patch(run.model, 0.7)[0])
    target, source = run.edit(layers="")
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3


def test_guidance_that_calls_the_model_again_is_refused(run):
    guided = PerturbedAttentionGuidance.execute(run.model, 3.0).result[0]
    with pytest.raises(ValueError, match="guidance node on this model calls it once more"):
        replace(run, model=guided).edit()
    registry = SelectAttentionLayers.execute(run.model, "middle").args[0]
    guided = guide(run.model, registry, "U-I", 2.0, asked_by="test")
    with pytest.raises(ValueError, match="guidance node on this model calls it in its own way"):
        replace(run, model=guided).edit()
    own_calls = run.model.clone()
    own_calls.model_options["sampler_calc_cond_batch_function"] = lambda args: None
    with pytest.raises(ValueError, match="guidance node on this model calls it in its own way"):
        replace(run, model=own_calls).edit()


def test_another_packs_wrapper_of_the_model_sees_ordinary_calls(run):
    seen = []

    def wrapper(apply_model, args):
        seen.append((tuple(args["input"].shape), len(args["cond_or_uncond"])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    wrapped = run.model.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    assert torch.equal(replace(run, model=wrapped).edit()[0], run.edit()[0])
    assert seen == [((12, *DEMO.latent_shape[1:]), 4)] * 2


def test_a_lora_is_in_both_clips(tiny_models):
    run = tiny_run(tiny_models, "sd15")
    with_lora = replace(run, model=tiny_models.load_lora(run.model), target=run.source)
    target, source = with_lora.edit()
    assert torch.equal(target, source)
    assert difference(source, run.plain(run.source)) > 0.01


PACKS = find_packs(Path(os.environ["COMFYUI_PATH"]))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("pack", PACKS)
def test_animatediffs_layers_take_from_the_source(run, pack, window):
    run = replace(run, model=PACKS[pack](run.model, window), shape=(4, *DEMO.latent_shape[1:]))
    target, source = run.edit(layers="")
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3
    assert torch.equal(*replace(run, target=run.source).edit())
    assert difference(run.edit(layers="temporal")[0], target) > 0.01


# The model and its memory --------------------------------------------------------------------------------------


@pytest.fixture
def room_for(run):
    """Makes the demo model ask for so much memory that ``rows`` branches fit, and one more would not."""
    base, usual = run.model.model, run.model.model.memory_usage_factor

    def make_room(branches: float) -> None:
        free = run.model.get_free_memory(run.model.load_device)
        one = base.memory_required([run.shape[0], *run.shape[1:]]) / base.memory_usage_factor
        base.memory_usage_factor = free / (1.5 * one * (branches + 0.5))

    yield make_room
    base.memory_usage_factor = usual


@pytest.mark.parametrize(("source_cfg", "calls"), [(4.0, [2, 2]), (1.0, [2, 2])])
def test_where_memory_holds_a_pair_at_a_time_the_result_is_the_same(unet, run, room_for, source_cfg, calls):
    whole = run.edit(source_cfg=source_cfg)
    model, watch = watched(unet, layers="middle", kinds=["spatial"])
    room_for(2)
    for split, together in zip(replace(run, model=model).edit(source_cfg=source_cfg), whole, strict=True):
        assert difference(split, together) < 1e-4
    assert [len(call.branches) for call in watch.calls] == calls * 2


def test_where_memory_holds_one_branch_at_a_time_the_result_is_the_same(run, room_for):
    whole = run.edit()
    room_for(1)
    for split, together in zip(run.edit(), whole, strict=True):
        assert difference(split, together) < 1e-4


def fingerprint(model) -> tuple:
    weights = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.model.modules()]
    return weights, hooks, repr(model.model_options), repr(model.wrappers)


def stop(error):
    def sampler(model, x, sigmas, extra_args, callback, disable):
        model(x, sigmas[:1].expand(len(x)), **extra_args)
        if len(x) == 6:  # not the rehearsal's two
            raise error
        return x

    return KSAMPLER(sampler)


@pytest.mark.parametrize("error", [None, RuntimeError("stopped"), InterruptProcessingException()])
def test_the_users_model_is_bit_identical_after_a_run_an_error_and_a_cancel(run, error):
    before = fingerprint(run.model)
    if error is None:
        run.edit()
    else:
        with pytest.raises(type(error)):
            replace(run, sampler=stop(error)).edit()
    after = fingerprint(run.model)
    assert all(torch.equal(weight, after[0][name]) for name, weight in before[0].items())
    assert before[1:] == after[1:]


def test_a_cancel_is_obeyed_at_the_next_model_call(run):
    def walk(model, x, sigmas, extra_args, callback, disable):
        if len(x) == 6:
            comfy.model_management.interrupt_current_processing()
        return sample_euler(model, x, sigmas, extra_args, callback, disable)

    with pytest.raises(InterruptProcessingException):
        replace(run, sampler=KSAMPLER(walk)).edit()
    assert not comfy.model_management.processing_interrupted()


def test_room_is_reserved_for_four_branches(run):
    asked = []

    def around(executor, model, noise_shape, *args, **kwargs):
        asked.append(list(noise_shape))
        return executor(model, noise_shape, *args, **kwargs)

    guider = EditGuider(run.model, Prompts(run.source, run.target, run.negative), Edit("*"), run.shape, "test")
    guider.model_patcher.add_wrapper(WrappersMP.PREPARE_SAMPLING, around)
    with torch.inference_mode():
        guider.sample(torch.ones(run.shape), torch.zeros(run.shape), PairSampler(run._sampler()), run.sigmas)
    assert asked == [[6, *DEMO.latent_shape[1:]]]  # ComfyUI doubles it


def test_what_cannot_be_edited_is_refused(run):
    latent = {"samples": NestedTensor([torch.zeros(run.shape), torch.zeros(1, 8, 8)])}
    with pytest.raises(ValueError, match="expected a clip alone"):
        replace(run, latent=latent).edit()
    prompts, noise = Prompts(run.source, run.target, run.negative), Noise_RandomNoise(0)
    with pytest.raises(ValueError, match="sigmas holds no step"):
        sample_edit(run.model, prompts, Edit("*"), noise, sampler_object("euler"), torch.zeros(1), run.latents, "test")
