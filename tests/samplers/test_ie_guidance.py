"""IE-Adapt's guidance on real models, against a guider that calls the model branch by branch."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from animatediff_layout import find_packs
from coherence.attention.registry import RegistryError, model_names, named_registry
from coherence.attention.sites import sites_of
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.samplers.ie_guidance import GUIDANCES, MissingBranchError, guide, rescaled
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from guidance_runs import ONE_STEP, Calls, agree, guided, one_by_one, registry_of
from tiny_models import FAMILIES, sample
from watching import DEMO, difference

LAYERS = {"demo": "output.0", "sd15": "middle", "wan21": "blocks.1", "cogvideox": "blocks.1", "svd": "middle"}
LAYERS |= {"hunyuan_video": "double.0", "ltxv": "blocks.1", "sdxl": "middle", "wan21_i2v": "blocks.1"}
LAYERS |= {"flux": "single_blocks.0", "sd3": "joint_blocks.1", "qwen_image": "transformer_blocks.1"}
LAYERS |= {"z_image": "layers.1", "krea2": "blocks.1"}
MODERATE = {"sigmas": torch.tensor([4.0, 1.0, 0.0])}  # noise at which float32 does not cancel
PACKS = find_packs(Path(os.environ["COMFYUI_PATH"]))


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def plain(unet):
    return sample(unet, DEMO)


@pytest.fixture(scope="module")
def models(tiny_models, unet):
    return lambda family: (unet, DEMO) if family == "demo" else (tiny_models.load(family), FAMILIES[family])


# The formulas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_each_guidance_is_its_formula(unet, plain, guidance):
    reference = sample(one_by_one(unet, guidance, 2.0, LAYERS["demo"]), DEMO)
    agree(sample(guided(unet, guidance, 2.0, LAYERS["demo"]), DEMO), reference, plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in LAYERS if family != "demo"])
def test_the_papers_guidance_is_right_on_every_family(models, family):
    """It has all kinds of branches: the other guidances add up the same ones."""
    model, shape = models(family)
    layers = LAYERS[family]
    how = MODERATE if family == "cogvideox" else {"steps": 1}  # its own first level is 4561
    reference = sample(one_by_one(model, "U-I", 2.0, layers), shape, **how)
    agree(sample(guided(model, "U-I", 2.0, layers), shape, **how), reference, sample(model, shape, **how))


@pytest.mark.parametrize("layers", ["input.3.motion.1", "output.1.attn1", "temporal"])
@pytest.mark.parametrize("pack", PACKS)
def test_it_is_right_under_animatediff(unet, pack, layers):
    model = PACKS[pack](unet)
    reference = sample(one_by_one(model, "U-I", 2.0, layers), DEMO)
    agree(sample(guided(model, "U-I", 2.0, layers), DEMO), reference, sample(model, DEMO))


def test_away_from_identity_at_the_middle_block_is_perturbed_attention_guidance(unet):
    core = sample(PerturbedAttentionGuidance.execute(unet, 2.0)[0], DEMO, **MODERATE)
    ours = sample(guided(unet, "A-I", 2.0, "middle"), DEMO, **MODERATE)
    agree(ours, core, sample(unet, DEMO, **MODERATE), tolerance=1e-5)


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_at_scale_zero_it_is_plain_cfg_to_the_bit(unet, plain, guidance):
    calls = Calls(guided(unet, guidance, 0.0))
    assert torch.equal(sample(calls.model, DEMO), plain)
    assert calls.rows == [2 * DEMO.latent_shape[0]] * 2


def test_outside_its_percentages_it_is_plain_cfg_to_the_bit(unet, plain):
    calls = Calls(guided(unet, end_percent=0.3))
    first_step_only = sample(calls.model, DEMO)
    assert calls.rows == [4 * DEMO.latent_shape[0], 2 * DEMO.latent_shape[0]]
    assert not torch.equal(first_step_only, plain)


def test_the_model_of_the_user_is_as_before_after_a_run_and_after_an_error(unet, plain):
    sample(guided(unet), DEMO)
    with pytest.raises(MissingBranchError):
        sample(guided(unet, "strategy 1"), DEMO, cfg=1.0)
    assert torch.equal(sample(unet, DEMO), plain)


# One call, whatever memory says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [("U-I", 4), ("A-I", 3), ("U-A", 3), ("strategy 1", 3), ("strategy 3", 4), ("strategy 4", 2)],
)
def test_all_branches_of_a_step_run_in_one_model_call(unet, guidance, branches):
    calls = Calls(guided(unet, guidance))
    sample(calls.model, DEMO)
    assert calls.rows == [branches * DEMO.latent_shape[0]] * 2


@pytest.mark.parametrize("family", ["demo", "wan21"])
def test_branches_split_by_memory_give_the_same(models, family, monkeypatch):
    model, shape = models(family)
    together = sample(guided(model, layers=LAYERS[family]), shape)
    plain = sample(model, shape)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    calls = Calls(guided(model, layers=LAYERS[family]))
    agree(sample(calls.model, shape), together, plain)
    assert len(calls.rows) == 4 * 2


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("demo", lambda unet: [blocks[1][1].proj_in for blocks in (unet.input_blocks, unet.output_blocks)]),
        ("wan21", lambda wan: (wan.blocks[0].self_attn.q, wan.blocks[1].self_attn.q)),
        ("cogvideox", lambda cog: (cog.blocks[0].ff_proj, cog.blocks[1].ff_proj)),
    ],
)
def test_before_the_first_perturbed_layer_copies_are_not_computed(models, family, layers):
    model, shape = models(family)
    rows = []
    early_and_late = layers(model.get_model_object("diffusion_model"))
    hooks = [layer.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0]))) for layer in early_and_late]
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        sample(guided(model, layers=LAYERS[family]), shape, steps=1)
    per_branch = shape.latent_shape[0]
    assert rows == [2 * per_branch, 4 * per_branch]


# Beside other nodes --------------------------------------------------------------------------------------------


def with_pag(model):
    return PerturbedAttentionGuidance.execute(model, 1.0)[0]


def with_rescale(model):
    return RescaleCFG().patch(model, 0.7)[0]


def with_momentum(model):
    from coherence.techniques.momentum import TemporalMomentum

    return tap(model, TemporalMomentum(0.8), layers="*", kinds=["spatial"], asked_by="test")[0]


def with_windows(model):
    return ContextWindowsManualNode.execute(model, 2, 1, "standard_static", 1, False, "pyramid", 0, False)[0]


@pytest.mark.parametrize("other", [with_pag, with_rescale, with_momentum])
def test_the_order_of_nodes_does_not_matter(unet, other):
    before, after = sample(guided(other(unet)), DEMO, **MODERATE), sample(other(guided(unet)), DEMO, **MODERATE)
    agree(before, after, sample(other(unet), DEMO, **MODERATE), tolerance=1e-5)


@pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode])
def test_a_cache_that_skips_steps_skips_guidance_with_them(unet, cache):
    def cached(model):
        return cache.execute(model, 0.5, 0.0, 1.0, False)[0]

    before, after = sample(guided(cached(unet)), DEMO, steps=8), sample(cached(guided(unet)), DEMO, steps=8)
    assert torch.equal(before, after)
    assert difference(before, sample(guided(unet), DEMO, steps=8)) > 1e-3


@pytest.mark.parametrize("other", [with_pag, with_rescale])
def test_beside_other_guidance_it_adds_its_own_difference(unet, other):
    """Both leave λ (D(c,+) − D(c,−)) to be added: at one step, where nothing feeds back."""
    alone = sample(guided(unet), DEMO, **ONE_STEP) - sample(unet, DEMO, **ONE_STEP)
    beside = sample(guided(other(unet)), DEMO, **ONE_STEP) - sample(other(unet), DEMO, **ONE_STEP)
    assert difference(beside, alone) < 1e-4


@pytest.mark.parametrize("other", [with_momentum, with_windows])
def test_it_is_the_formula_of_a_model_with(unet, other):
    model = other(unet)
    reference = sample(one_by_one(model, "U-I", 2.0, "output.0"), DEMO)
    agree(sample(guided(model), DEMO), reference, sample(model, DEMO))


def test_two_guidances_add_up(unet):
    def change(model):
        return sample(model, DEMO, **ONE_STEP) - sample(unet, DEMO, **ONE_STEP)

    both = guided(guided(unet, "U-I", 1.0, "output.0"), "A-I", 2.0, "middle")
    apart = change(guided(unet, "U-I", 1.0, "output.0")) + change(guided(unet, "A-I", 2.0, "middle"))
    assert difference(change(both), apart) < 1e-4


def test_other_packs_patches_see_conditionings_not_copies(unet):
    seen = []

    def patch(q, k, v, extra_options):
        seen.append((len(q), tuple(extra_options["cond_or_uncond"])))
        return q, k, v

    model = unet.clone()
    model.set_model_attn2_patch(patch)
    sample(guided(model), DEMO, **ONE_STEP)
    frames = DEMO.latent_shape[0]
    assert {(4 * frames, (1, 0, 0, 0))} == set(seen)


# Conditionings -------------------------------------------------------------------------------------------------


def conditionings():
    positive, negative = DEMO.conditioning()
    ((text, _),) = positive
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    area = [[text, {"area": (4, 8, 4, 0), "strength": 0.7}]]
    long = [[torch.cat([negative[0][0]] * 2, dim=1), {}]]
    odd = [[torch.cat([negative[0][0], negative[0][0][:, :5]], dim=1), {}]]
    return {
        "a mask": ([*positive, [text.flip(1), {"mask": mask, "mask_strength": 1.0}]], negative),
        "an area": (positive + area, negative),
        "two prompts": ([*positive, [text.flip(1), {}]], negative),
        "a longer negative": (positive, long),
        "a negative that cannot be batched": (positive, odd),
        "the same prompt twice": (positive, positive),
    }


@pytest.mark.parametrize("name", conditionings())
def test_it_is_right_for(unet, name):
    conditioning = conditionings()[name]
    reference = sample(one_by_one(unet, "U-I", 2.0, "output.0"), DEMO, conditioning=conditioning)
    ours = sample(guided(unet), DEMO, conditioning=conditioning)
    agree(ours, reference, sample(unet, DEMO, conditioning=conditioning))


def test_it_is_right_with_a_controlnet_and_a_lora(tiny_models):
    import nodes

    shape = FAMILIES["sd15"]
    model = tiny_models.load_lora(tiny_models.load("sd15"))
    hint = torch.rand(3, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    conditioning = apply(*shape.conditioning(), tiny_models.load_controlnet(), hint, 1.0, 0.0, 1.0)[:2]
    how = {"steps": 1, "conditioning": conditioning}
    reference = sample(one_by_one(model, "U-I", 2.0, "middle"), shape, **how)
    agree(sample(guided(model, layers="middle"), shape, **how), reference, sample(model, shape, **how))


@pytest.mark.parametrize("guidance", [g for g in GUIDANCES if g != "strategy 1"])
def test_at_cfg_1_it_goes_without_the_negative(unet, guidance):
    calls = Calls(guided(unet, guidance))
    ours = sample(calls.model, DEMO, cfg=1.0)
    reference = sample(one_by_one(unet, guidance, 2.0, "output.0"), DEMO, cfg=1.0)
    agree(ours, reference, sample(unet, DEMO, cfg=1.0))
    assert max(calls.rows) < 4 * DEMO.latent_shape[0]


def test_at_cfg_1_a_guidance_that_needs_the_negative_says_so(unet):
    with pytest.raises(MissingBranchError, match=r"test \(strategy 1\) needs the negative conditioning.*raise cfg"):
        sample(guided(unet, "strategy 1"), DEMO, cfg=1.0)


# Rescaling, and what cannot be done ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 4, 3, 8, 8)])
def test_a_full_rescale_gives_the_contrast_of_the_positive_branch(shape):
    guided_, positive = torch.randn(shape) * 3, torch.randn(shape) * 0.5
    axes = list(range(1, len(shape)))
    torch.testing.assert_close(rescaled(guided_, positive, 1.0).std(axes), positive.std(axes))
    half = rescaled(guided_, positive, 0.5)
    torch.testing.assert_close(half, (guided_ + rescaled(guided_, positive, 1.0)) / 2)
    assert rescaled(guided_, positive, 0.0) is guided_


def test_a_constant_prediction_stays_where_it_is_rescaled():
    constant = torch.full((2, 4, 8, 8), 0.5)
    assert torch.equal(
        rescaled(constant, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 1.0), constant
    )


def test_rescaling_takes_contrast_back_while_sampling(unet):
    contrast = [sample(guided(unet, scale=8.0, rescale=r), DEMO, steps=1).std() for r in (0.0, 0.5, 1.0)]
    assert contrast[0] > contrast[1] > contrast[2]
    assert not torch.equal(sample(guided(unet, "strategy 4", rescale=0.7), DEMO), sample(guided(unet), DEMO))


def test_a_registry_without_a_selected_layer_is_refused(unet):
    sites = sites_of(unet)
    with pytest.raises(RegistryError, match="selects no layer"):
        guide(unet, named_registry(*model_names(unet), sites, [], ""), "U-I", 2.0, asked_by="test")


def test_a_registry_of_another_model_is_refused_by_its_name(tiny_models, unet):
    with pytest.raises(RegistryError, match=r"another model: WAN21 \(WanModel\), this one is BaseModel \(UNetModel\)"):
        guide(unet, registry_of(tiny_models.load("wan21"), "blocks.1"), "U-I", 2.0, asked_by="test")
