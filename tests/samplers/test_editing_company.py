"""Edits beside other nodes' patches: each clip is what plain sampling of it gives, and they are told what it tells."""

from dataclasses import replace

import pytest
import torch
from attention_couple import coupled
from coherence.demo.model import load_model
from coherence.techniques.replacement import UnpairedBranchError
from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance, VideoTriangleCFGGuidance
from editing_runs import demo_run, halves, tiny_run
from random_controlnet import controlnet
from telling_control import TellingControl, hearing
from watching import DEMO, difference

from nodes import ControlNetApplyAdvanced

pytestmark = pytest.mark.slow

NODES = {
    "NAGuidance": lambda m: NAGuidance.execute(m, 5.0, 0.5, 1.5)[0],
    "Mahiro": lambda m: Mahiro.execute(m)[0],
    "VideoLinearCFG": lambda m: VideoLinearCFGGuidance().patch(m, 1.0)[0],
    "VideoTriangleCFG": lambda m: VideoTriangleCFGGuidance().patch(m, 1.0)[0],
    "RescaleCFG": lambda m: RescaleCFG().patch(m, 0.7)[0],
    "APG": lambda m: APG.execute(m, 0.5, 5.0, -0.5)[0],
    "CFGZeroStar": lambda m: CFGZeroStar.execute(m)[0],
    "FreSca": lambda m: FreSca.execute(m, 0.8, 1.5, 4)[0],
}


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture
def run(unet):
    return demo_run(unet, steps=2, shape=(2, *DEMO.latent_shape[1:]))


def is_plain(run, target_cfg=4.0, source_cfg=4.0, tolerance=1e-4, **edit):
    """Without layers both clips are plain sampling of the same model."""
    target, source = run.edit(layers="", cfg=target_cfg, source_cfg=source_cfg, **edit)
    assert difference(target, run.plain(run.target, target_cfg)) < tolerance
    assert difference(source, run.plain(run.source, source_cfg)) < tolerance


@pytest.mark.parametrize("source_cfg", [2.5, 1.0])
@pytest.mark.parametrize("name", NODES)
def test_each_clip_is_as_with_the_node_alone(run, name, source_cfg):
    patched = replace(run, model=NODES[name](run.model))
    is_plain(patched, source_cfg=source_cfg)
    assert difference(patched.plain(run.target), run.plain(run.target)) > 1e-3


@pytest.mark.parametrize("name", ["NAGuidance", "Mahiro", "APG"])
def test_each_clip_is_as_with_the_node_alone_at_cfg_1(run, name):
    is_plain(replace(run, model=NODES[name](run.model)), target_cfg=1.0, source_cfg=3.0)


@pytest.mark.parametrize("name", ["NAGuidance", "VideoLinearCFG", "APG"])
@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m"])
def test_a_sampler_that_looks_at_guidance_sees_both_clips_whatever_nodes_are_there(run, name, sampler):
    is_plain(replace(run, model=NODES[name](run.model), sampler=sampler, steps=4), source_cfg=3.0, tolerance=1e-3)


@pytest.mark.parametrize("name", ["NAGuidance", "APG"])
def test_equal_prompts_give_equal_clips(run, name):
    same = replace(run, model=NODES[name](run.model), target=run.source)
    assert torch.equal(*same.edit())


@pytest.mark.parametrize("name", ["NAGuidance", "VideoLinearCFG", "Mahiro"])
def test_outside_the_mask_the_target_is_the_source(run, name):
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    patched = replace(run, model=NODES[name](run.model))
    target, source = patched.edit(mask=mask, source_cfg=2.0)
    assert torch.equal(target[..., :4], source[..., :4])
    assert torch.equal(source, patched.edit(source_cfg=2.0)[1])


def test_each_clip_is_as_with_the_node_alone_where_prompts_have_areas(run):
    areas = replace(run, source=halves(run.source), target=halves(run.target), model=NODES["NAGuidance"](run.model))
    is_plain(areas, source_cfg=2.0, tolerance=1e-3)


def test_each_clip_is_as_with_the_nodes_alone_in_context_windows(unet):
    run = demo_run(unet, shape=(4, *DEMO.latent_shape[1:]))
    windows = (2, 1, "standard_static", 1, False, "pyramid", 0, False, [])
    model = ContextWindowsManualNode.execute(run.model, *windows, causal_window_fix=False)[0]
    patched = NODES["NAGuidance"](NODES["VideoLinearCFG"](model))
    is_plain(replace(run, model=patched), source_cfg=2.0, tolerance=1e-3)


def test_each_clip_of_a_video_model_is_as_with_the_nodes_alone(tiny_models):
    run = tiny_run(tiny_models, "wan21")
    is_plain(replace(run, model=NODES["Mahiro"](NODES["APG"](run.model))), source_cfg=2.0, tolerance=1e-3)


# What they are told --------------------------------------------------------------------------------------------


class Spy:
    """Whatever it is hooked into notes the branches that it is told."""

    def __init__(self):
        self.told = {}

    def note(self, name, options, rows=None):
        branches = options["cond_or_uncond"]
        self.told.setdefault(name, set()).add((tuple(branches), rows and rows // len(branches)))

    def on(self, model):
        model = model.clone()

        def patch(q, k, v, options):
            self.note("patch", options, len(q))
            return q, k, v

        def block(x, options):
            self.note("patch", options, len(x))
            return x

        def wrapper(apply_model, args):
            self.note("model function", args, len(args["input"]))
            self.note("model function", args["c"]["transformer_options"], len(args["input"]))
            return apply_model(args["input"], args["timestep"], **args["c"])

        def apply(executor, x, t, concat=None, context=None, control=None, options=None, **kwargs):
            self.note("call", options, len(x))
            return executor(x, t, concat, context, control, options, **kwargs)

        model.set_model_attn1_patch(patch)
        model.set_model_attn2_patch(patch)
        model.set_model_input_block_patch(block)
        model.set_model_attn1_replace(lambda q, k, v, options: block(v, options), "middle", 0, 0)
        model.set_model_unet_function_wrapper(wrapper)
        model.add_wrapper(WrappersMP.APPLY_MODEL, apply)
        return model


@pytest.mark.parametrize(
    ("cfg", "source_cfg", "call", "patches"),
    [
        (4.0, 4.0, (1, 1, 0, 0), {(1, 0)}),
        (4.0, 1.0, (1, 0, 0), {(1, 0), (0,)}),
        (1.0, 4.0, (1, 0, 0), {(1, 0), (0,)}),
        (1.0, 1.0, (0, 0), {(0,)}),
    ],
)
def test_positives_are_told_as_0_and_negatives_as_1_and_patches_see_one_clip(run, cfg, source_cfg, call, patches):
    spy = Spy()
    replace(run, model=spy.on(run.model)).edit(layers="middle", cfg=cfg, source_cfg=source_cfg)
    frames = run.shape[0]
    assert spy.told["call"] == spy.told["model function"] == {(call, frames)}
    assert spy.told["patch"] == {(branches, frames) for branches in patches}


def test_combined_prompts_are_told_as_in_plain_sampling(run):
    spy = Spy()
    combined = replace(run, source=run.source * 2, target=run.target + run.source, model=spy.on(run.model))
    is_plain(combined)
    assert spy.told["patch"] == {((1, 0, 0), run.shape[0])}


def test_what_a_patch_remembers_from_layer_to_layer_is_of_its_clip(run):
    """As packs do that take something at one layer and use it at the next."""

    def stateful(model):
        model, before = model.clone(), {}

        def take(x, options):
            x = x + 0.1 * before.get("x", torch.zeros_like(x[:, :1, :1, :1])).mean()
            before["x"] = x.clone()
            options["taken"] = x.mean()
            return x

        def give(n, options):
            return n * (1 + 0.1 * options.get("caught", 0.0))

        def catch(x, options):
            options["caught"] = x.mean()
            return x

        model.set_model_input_block_patch(take)
        model.set_model_patch(catch, "middle_patch")
        model.set_model_attn2_output_patch(give)
        return model

    target, source = replace(run, model=stateful(run.model)).edit(layers="")
    for clip, prompt in ((target, run.target), (source, run.source)):
        alone = replace(run, model=stateful(run.model)).plain(prompt)  # its memory is empty
        assert difference(clip, alone) < 1e-4
    assert difference(target, run.edit(layers="")[0]) > 0.01


def replaced(model):
    """Beside it, a node that takes the layer's attention and wants the rows of one clip, and one that scales them."""

    def attend(q, k, v, options):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert len(q) in (3 * 2, 2 * 2)  # branches and a region, each of two frames
        return out * torch.linspace(0.5, 1.5, len(out)).reshape(-1, 1, 1)

    model = model.clone()
    for place in (("input", 1), ("input", 4), ("middle", 0), ("output", 1)):
        model.set_model_attn2_replace(attend, *place)
    return model


@pytest.mark.parametrize("beside", [None, replaced])
@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_patches_that_give_the_positive_further_rows_see_one_clip(run, beside, source_cfg):
    model = coupled(run.model)
    patched = replace(run, model=beside(model) if beside else model)
    is_plain(patched, source_cfg=source_cfg)
    assert difference(patched.plain(run.target), run.plain(run.target)) > 1e-3


def test_a_patch_that_takes_rows_out_is_left_with_the_whole_call(run):
    def halved(model):
        model = model.clone()

        def every_second(q, k, v, options):
            return q[::2], k[::2], v[::2]

        def for_both(n, options):
            return n.repeat_interleave(2, dim=0)

        model.set_model_attn2_patch(every_second)
        model.set_model_attn2_output_patch(for_both)
        return model

    is_plain(replace(run, model=halved(run.model)))


# What they keep ------------------------------------------------------------------------------------------------


def remembering_in(place):
    """Guidance with a running average that it keeps as packs do: in model options, around it, in an object."""

    def node(model):
        model, kept, cell = model.clone(), {}, None

        class Memory:
            average = None

        memory = Memory()

        def guide(args):
            nonlocal cell
            difference = args["cond"] - args["uncond"]
            where = args["model_options"] if place == "model_options" else kept
            if place == "transformer_options":
                where = args["model_options"]["transformer_options"]
            before = {"variable": cell, "object": memory.average}.get(place, where.get("their average"))
            average = difference if before is None else difference + 0.5 * before
            if place == "variable":
                cell = average
            elif place == "object":
                memory.average = average
            else:
                where["their average"] = average
            return args["uncond"] + args["cond_scale"] * average

        model.set_model_sampler_cfg_function(guide)
        return model

    return node


@pytest.mark.parametrize("place", ["model_options", "transformer_options", "variable", "dictionary", "object"])
def test_what_guidance_remembers_from_step_to_step_is_of_its_clip(run, place):
    node = remembering_in(place)
    target, source = replace(run, model=node(run.model)).edit(layers="", source_cfg=3.0)
    for clip, prompt, cfg in ((target, run.target, 4.0), (source, run.source, 3.0)):
        assert difference(clip, replace(run, model=node(run.model)).plain(prompt, cfg)) < 1e-4
    assert difference(target, run.edit(layers="")[0]) > 0.01


# ControlNets ---------------------------------------------------------------------------------------------------


def with_control(run, *controls):
    """The run with ControlNets on source, target and negative."""
    prompts = zip((run.source, run.target, run.negative), controls, strict=True)
    source, target, negative = ([[text, {**extras, "control": net}]] for ((text, extras),), net in prompts)
    return replace(run, source=source, target=target, negative=negative)


@pytest.mark.parametrize("source_cfg", [4.0, 2.0, 1.0])
def test_a_controlnet_with_methods_on_its_instance_is_told_each_clip_as_alone(run, source_cfg):
    control = TellingControl()
    controlled = with_control(run, control, control, control)
    is_plain(controlled, source_cfg=source_cfg)
    assert difference(controlled.plain(controlled.target), run.plain(run.target)) > 0.01
    in_edits = {told for told in control.told if len(told[0]) > 2 or told[0] == (0, 0)}
    assert in_edits == {((1, 0, 0) if source_cfg == 1.0 else (1, 1, 0, 0), run.shape)}


def test_what_a_controlnet_tells_patches_of_the_model_is_heard(run):
    """As reference ControlNets do, whose patches did nothing, silently."""
    control = TellingControl()
    run = with_control(run, control, control, control)
    heard = replace(run, model=hearing(run.model))
    is_plain(heard)
    assert difference(heard.plain(run.target), run.plain(run.target)) > 0.01


def applied(run, *strengths):
    """The run with an Apply ControlNet node of its own for each prompt."""
    hint = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    net, apply = controlnet(), ControlNetApplyAdvanced().apply_controlnet
    prompts = zip((run.source, run.target, run.negative), strengths, strict=True)
    return replace(
        run,
        **{
            name: apply(prompt, [], net, hint.clone(), strength, 0.0, 1.0)[0]
            for name, (prompt, strength) in zip(("source", "target", "negative"), prompts, strict=True)
        },
    )


@pytest.mark.parametrize("source_cfg", [3.0, 1.0])
def test_several_apply_nodes_with_equal_settings_are_one_controlnet(run, source_cfg):
    controlled = applied(run, 0.7, 0.7, 0.7)
    is_plain(controlled, source_cfg=source_cfg, tolerance=1e-3)
    free, edited = controlled.edit(layers="", source_cfg=source_cfg), controlled.edit(source_cfg=source_cfg)
    assert difference(edited[0], free[0]) > 0.01
    assert difference(edited[1], free[1]) < 1e-4


def test_apply_nodes_may_differ_from_clip_to_clip(run):
    controlled = applied(run, 0.7, 0.2, 0.7)
    is_plain(controlled, source_cfg=3.0, tolerance=1e-3)
    assert difference(controlled.edit(source_cfg=3.0)[0], applied(run, 0.7, 0.7, 0.7).edit(source_cfg=3.0)[0]) > 0.01


# Conditionings with hooks --------------------------------------------------------------------------------------


def hooked(prompt, hooks):
    ((text, extras),) = prompt
    return [[text, {**extras, "hooks": hooks}]]


def test_hooks_on_both_prompts_see_one_clip_at_a_time(run):
    told = set()

    def regions(n, options):
        told.add((tuple(options["cond_or_uncond"]), len(n)))
        return n * torch.linspace(0.8, 1.2, n.shape[1]).reshape(1, -1, 1)

    hooks = HookGroup()
    hooks.add(TransformerOptionsHook({"patches": {"attn2_output_patch": [regions]}}, EnumHookScope.HookedOnly))
    regional = replace(run, source=hooked(run.source, hooks), target=hooked(run.target, hooks))
    is_plain(regional)
    assert told == {((0,), run.shape[0])}
    assert difference(regional.edit()[0], regional.edit(layers="")[0]) > 0.01
    with pytest.raises(UnpairedBranchError, match="attention couple"):
        replace(regional, source=run.source).edit()
