"""IE guidance beside others: what their patches are told, what they keep, and guidances that are stacked."""

from functools import partial
from itertools import permutations

import comfy.samplers
import pytest
import torch
from attention_couple import coupled
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.samplers.ie_guidance import MissingBranchError
from coherence.techniques.perturbation import IDENTITY, UNIFORM, Perturbation
from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_nag import NAGuidance
from guidance_runs import KINDS, ONE_STEP, Calls, agree, guided
from telling_control import TellingControl, hearing
from tiny_models import sample
from watching import DEMO, difference

pytestmark = pytest.mark.slow

FRAMES = DEMO.latent_shape[0]


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(params=[4, 2], ids=lambda n: f"{n} branches a call")
def memory(request, unet, monkeypatch):
    """Free memory for so many branches in a call; with less, CFG's own two would be in two calls."""
    model = unet.model
    monkeypatch.setattr(
        model, "memory_required", lambda shape, **_: 0 if len(shape) and shape[0] <= request.param * FRAMES else 1e30
    )
    monkeypatch.setattr(type(unet), "get_free_memory", lambda self, device: 1.0)
    return request.param


# What they are told --------------------------------------------------------------------------------------------


def nag(model):
    return NAGuidance.execute(model, 5.0, 0.5, 1.5)[0]


def halves(model):
    """Normalised attention guidance as packs have it that know of two branches: the negative's rows first."""

    def patch(n, options):
        told = options["cond_or_uncond"]
        assert list(told) == sorted(told, reverse=True)
        if 1 not in told or 0 not in told:
            return n
        rows = len(n) // len(told)
        negative, positive = n[:rows], n[rows : 2 * rows]
        return torch.cat([negative, positive + 0.5 * (positive - negative), n[2 * rows :]])

    model = model.clone()
    model.set_model_attn2_output_patch(patch)
    return model


def with_extra_calls(model, patch, guidance="U-I", scale=2.0, layers="output.0"):
    """A patched model under guidance whose copies are calls of their own, as in ComfyUI's perturbed attention."""
    tapped = {
        alpha: tap(patch(model), Perturbation(alpha), layers=layers, kinds=KINDS, asked_by="reference")[0]
        for alpha in (UNIFORM, IDENTITY)
    }

    def post(args):
        def copy(alpha):
            theirs = tapped[alpha]
            options = {**theirs.model_options["transformer_options"], "wrappers": theirs.wrappers}
            options["sample_sigmas"] = args["model_options"]["transformer_options"]["sample_sigmas"]
            options = {**args["model_options"], "transformer_options": options}
            return comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)[
                0
            ]

        first = copy(UNIFORM) if guidance == "U-I" else args["cond_denoised"]
        return args["denoised"] + scale * (first - copy(IDENTITY))

    clone = patch(model)
    clone.set_model_sampler_post_cfg_function(post)
    return clone


@pytest.mark.parametrize("patch", [nag, halves])
@pytest.mark.parametrize("guidance", ["U-I", "A-I"])
def test_a_patch_that_compares_branches_acts_on_the_guiders_own_however_memory_splits_a_call(
    unet, patch, guidance, memory
):
    ours = sample(guided(patch(unet), guidance), DEMO)
    reference = sample(with_extra_calls(unet, patch, guidance), DEMO)
    agree(ours, reference, sample(patch(unet), DEMO))
    assert difference(ours, sample(guided(unet, guidance), DEMO)) > 0.01


def in_windows(model):
    windows = (2, 1, "standard_static", 1, False, "pyramid", 0, False, [])
    return ContextWindowsManualNode.execute(nag(model), *windows, causal_window_fix=False)[0]


def test_a_patch_that_compares_branches_does_so_in_context_windows_too(unet):
    reference = sample(with_extra_calls(unet, in_windows), DEMO)
    agree(sample(guided(in_windows(unet)), DEMO), reference, sample(in_windows(unet), DEMO))


def test_a_patch_that_compares_branches_is_told_those_of_combined_prompts(unet):
    (positive,), negative = DEMO.conditioning()
    prompts = [positive, [positive[0].flip(1), {}]], negative
    reference = sample(with_extra_calls(unet, nag), DEMO, conditioning=prompts)
    agree(
        sample(guided(nag(unet)), DEMO, conditioning=prompts), reference, sample(nag(unet), DEMO, conditioning=prompts)
    )


def spied(model):
    """Notes what is told at every place where packs hook in: name, branches, rows of each."""
    told, model = set(), model.clone()

    def note(name, options, rows):
        told.add((name, tuple(options["cond_or_uncond"]), rows // len(options["cond_or_uncond"])))

    def wrapper(apply_model, args):
        note("arguments", args, len(args["input"]))
        note("model function", args["c"]["transformer_options"], len(args["input"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    def apply(executor, x, t, concat=None, context=None, control=None, options=None, **kwargs):
        note("call", options, len(x))
        return executor(x, t, concat, context, control, options, **kwargs)

    def patch(n, options):
        note("patch", options, len(n))
        return n

    model.set_model_unet_function_wrapper(wrapper)
    model.add_wrapper(WrappersMP.APPLY_MODEL, apply)
    model.set_model_attn1_output_patch(patch)
    model.set_model_attn2_output_patch(patch)
    return model, told


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        ("U-I", (1, 0, 0, 0)),
        ("A-I", (1, 0, 0)),
        ("strategy 1", (1, 1, 0)),
        ("strategy 3", (1, 0, 0, 0)),
        ("strategy 4", (1, 0)),
    ],
)
def test_others_are_told_negatives_first_and_copies_as_their_original(unet, guidance, branches):
    model, told = spied(unet)
    sample(guided(model, guidance), DEMO)
    assert {name for name, *_ in told} == {"arguments", "model function", "call", "patch"}
    assert {tuple(rest) for _, *rest in told} == {(branches, FRAMES)}


def test_rows_go_with_their_branches(unet):
    """A wrapper that marks negatives reaches the negative's rows, and these alone."""

    def marked(model):
        def wrapper(apply_model, args):
            out = apply_model(args["input"], args["timestep"], **args["c"])
            sign = [1.1 if index else 0.9 for index in args["cond_or_uncond"]]
            factors = torch.tensor(sign).repeat_interleave(len(out) // len(sign))
            return out * factors.reshape(-1, 1, 1, 1)

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model

    reference = sample(with_extra_calls(unet, marked), DEMO)
    agree(sample(guided(marked(unet)), DEMO), reference, sample(marked(unet), DEMO))


def controlled(control):
    return tuple([[text, {**extras, "control": control}]] for ((text, extras),) in DEMO.conditioning())


def test_a_controlnet_is_told_as_the_model_is(unet):
    control = TellingControl()
    ours = sample(guided(unet), DEMO, conditioning=controlled(control))
    assert control.told == {((1, 0, 0, 0), DEMO.latent_shape)}
    reference = sample(with_extra_calls(unet, lambda m: m.clone()), DEMO, conditioning=controlled(TellingControl()))
    agree(ours, reference, sample(unet, DEMO, conditioning=controlled(TellingControl())))


def test_what_a_controlnet_tells_patches_of_the_model_is_heard(unet):
    run = partial(sample, family=DEMO, conditioning=controlled(TellingControl()))
    agree(run(guided(hearing(unet))), run(with_extra_calls(unet, hearing)), run(hearing(unet)))
    assert difference(run(hearing(unet)), run(unet)) > 0.01


def test_patched_layers_before_the_first_perturbed_one_run_for_copies_too(unet):
    """A copy gets what its own call gives it, not what the patch does to its original; FreeU's cost is known."""
    rows = []
    layer = unet.get_model_object("diffusion_model").input_blocks[1][1].proj_in
    hook = layer.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    with torch.inference_mode():
        sample(guided(FreeU_V2.execute(unet, 1.3, 1.4, 0.9, 0.2)[0]), DEMO, **ONE_STEP)
        sample(guided(unet), DEMO, **ONE_STEP)
    hook.remove()
    assert rows == [4 * FRAMES, 2 * FRAMES]


# What they keep ------------------------------------------------------------------------------------------------


def momentum_in(*where):
    """Guidance whose running average is kept in model options."""

    def node(model):
        def guide(args):
            options = args["model_options"]
            for name in where:
                options = options[name]
            difference = args["cond"] - args["uncond"]
            options["their average"] = difference + 0.5 * options.get("their average", torch.zeros_like(difference))
            return args["uncond"] + args["cond_scale"] * options["their average"]

        model = model.clone()
        model.set_model_sampler_cfg_function(guide)
        return model

    return node


@pytest.mark.parametrize("where", [(), ("transformer_options",)])
def test_what_others_keep_in_model_options_stays_from_step_to_step(unet, where):
    node = momentum_in(*where)
    reference = sample(with_extra_calls(unet, node), DEMO, steps=4)
    ours = sample(guided(node(unet)), DEMO, steps=4)
    agree(ours, reference, sample(guided(unet), DEMO, steps=4))


def test_a_run_leaves_nothing_of_ours_in_its_model_options(unet):
    seen = []

    def post(args):
        seen.append(args["model_options"])
        return args["denoised"]

    model = unet.clone()
    model.set_model_sampler_post_cfg_function(post)
    sample(guided(guided(model), "A-I", layers="middle"), DEMO)
    assert all(options is seen[0] for options in seen)
    assert "context_handler" not in seen[0]
    assert "model_function_wrapper" not in seen[0]
    assert not any("cost_step" in name for name in seen[0]["transformer_options"])


# Stacked guidances ---------------------------------------------------------------------------------------------

FIRST, SECOND = "output.0", "middle"


@pytest.mark.parametrize(
    "pair", [*permutations(["U-I", "A-I", "strategy 1", "strategy 3", "strategy 4"], 2)], ids=" + ".join
)
def test_stacked_guidances_add_up_in_any_order(unet, pair):
    def change(model):
        return sample(model, DEMO, **ONE_STEP) - sample(unet, DEMO, **ONE_STEP)

    one, other = pair
    both = change(guided(guided(unet, one, 1.5, FIRST), other, 2.0, SECOND))
    apart = change(guided(unet, one, 1.5, FIRST)), change(guided(unet, other, 2.0, SECOND))
    assert difference(both, sum(apart)) < 1e-4
    assert all(each.abs().max() > 1e-3 * both.abs().max() for each in apart)


def test_two_rescales_are_the_same_in_both_orders(unet):
    one = guided(guided(unet, "U-I", 2.0, FIRST, rescale=0.7), "A-I", 2.0, SECOND, rescale=0.3)
    other = guided(guided(unet, "A-I", 2.0, SECOND, rescale=0.3), "U-I", 2.0, FIRST, rescale=0.7)
    assert difference(sample(one, DEMO), sample(other, DEMO)) < 1e-5


def test_stacked_guidances_may_act_at_different_steps(unet):
    calls = Calls(guided(guided(unet, end_percent=0.3), "A-I", layers="middle", start_percent=0.3))
    sample(calls.model, DEMO)
    assert calls.rows == [4 * FRAMES, 3 * FRAMES]


def test_of_stacked_guidances_the_one_that_lacks_a_branch_says_so(unet):
    model = guided(guided(unet, "strategy 4", layers=FIRST), "strategy 1", layers=SECOND)
    with pytest.raises(MissingBranchError, match=r"test \(strategy 1\) needs the negative"):
        sample(model, DEMO, cfg=1.0)


# Conditionings with hooks --------------------------------------------------------------------------------------


def with_regions(conditioning):
    """The conditioning with hooks that act in its calls, and take these to hold nothing else, as attention couple."""

    def regions(n, options):
        assert tuple(options["cond_or_uncond"]) == (0,)
        rows = len(n)
        assert rows == FRAMES
        return n * torch.linspace(0.8, 1.2, n.shape[1]).reshape(1, -1, 1)

    hook = TransformerOptionsHook({"patches": {"attn2_output_patch": [regions]}}, EnumHookScope.HookedOnly)
    group = HookGroup()
    group.add(hook)
    ((text, extras),) = conditioning
    return [[text, {**extras, "hooks": group}]]


@pytest.mark.parametrize("guidance", ["U-I", "A-I", "strategy 3", "strategy 4"])
def test_copies_of_a_conditioning_with_hooks_of_its_own_are_calls_of_their_own(unet, guidance):
    positive, negative = DEMO.conditioning()
    prompts = with_regions(positive), negative
    calls = Calls(guided(unet, guidance))
    ours = sample(calls.model, DEMO, conditioning=prompts)
    assert set(calls.rows) == {FRAMES}
    if guidance in ("U-I", "A-I"):
        reference = sample(with_extra_calls(unet, lambda m: m.clone(), guidance), DEMO, conditioning=prompts)
        agree(ours, reference, sample(unet, DEMO, conditioning=prompts))
    assert difference(ours, sample(guided(unet, guidance), DEMO)) > 1e-3


@pytest.mark.parametrize("guidance", ["U-I", "A-I"])
@pytest.mark.parametrize("guided_first", [True, False])
def test_patches_that_give_the_positive_further_rows_meet_one_positive_a_call(unet, guidance, guided_first):
    ours = coupled(guided(unet, guidance)) if guided_first else guided(coupled(unet), guidance)
    reference = sample(with_extra_calls(unet, coupled, guidance), DEMO)
    agree(sample(ours, DEMO), reference, sample(coupled(unet), DEMO))


# Caches --------------------------------------------------------------------------------------------------------


def test_easycache_keeps_branches_apart(unet):
    def cached(model):
        return EasyCacheNode.execute(model, 0.5, 0.0, 1.0, False)[0]

    two = guided(guided(cached(unet)), "A-I", layers="middle")
    assert sample(two, DEMO, steps=6).isfinite().all()
    plain = sample(guided(guided(unet), "A-I", layers="middle"), DEMO, steps=6)
    assert difference(sample(two, DEMO, steps=6), plain) > 1e-3
