"""GE-Adapter's LoRA: which layers, how many parameters, names that ComfyUI's stock loader takes, and when it acts."""

from contextlib import nullcontext

import comfy.model_base
import comfy.patcher_extension
import comfy.supported_models
import pytest
import torch
from adapter_runs import QUICK, clips
from coherence.attention.forms import TUNE_A_VIDEO
from coherence.attention.steps import NoStepError
from coherence.demo.model import load_model
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.ge_adapter import GEAdapterApply
from coherence.samplers.inversion import Inversion, invert_latent
from coherence.samplers.lora_steps import with_lora
from coherence.training.ge_adapter import GEAdapter, Training
from coherence.training.ge_adapter_training import train_adapter
from coherence.training.low_rank import attention_projections, initial_lora, pairs_of
from comfy.samplers import calculate_sigmas
from comfy_api.torch_helpers import set_torch_compile_wrapper
from inflation_runs import put
from measured import figures_of
from random_lora import lora_for
from register_runs import demo_start
from safetensors.torch import save_file
from tiny_models import FAMILIES, sample
from tuning_runs import tuned
from watching import DEMO, difference

SD15_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}
ALL_STEPS = (0.0, 1.0)


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def plain(unet):
    return sample(unet, DEMO)


def parameter_count(projections, rank: int) -> int:
    return sum(rank * (each.inputs + each.outputs) for each in projections)


def test_the_sizes_at_rank_4_on_stable_diffusion_1_5():
    """The paper's 0.755 M is neither. 860 M parameters of the whole UNet: these are its true shapes."""
    model = comfy.model_base.BaseModel(comfy.supported_models.SD15(SD15_UNET), device=torch.device("meta"))
    assert sum(weight.numel() for weight in model.diffusion_model.parameters()) == 859_520_964
    down, everywhere = (attention_projections(model, layers) for layers in ("down", "all"))
    assert (len(down), parameter_count(down, 4)) == (48, 287_744)
    assert (len(everywhere), parameter_count(everywhere, 4)) == (128, 797_184)
    assert {each.name.split("_attentions")[0] for each in down} == {f"lora_unet_down_blocks_{n}" for n in range(3)}
    second_feed_forward = 2 * sum(5 * width for width in (320, 640, 1280))
    assert 2 * parameter_count(down, 4) + 8 * second_feed_forward == 754_688  # a guess at the paper's count


def test_an_untrained_lora_is_the_base_model_bitwise(unet, plain):
    projections = attention_projections(unet.model, "all")
    lora = initial_lora(projections, 4, torch.Generator().manual_seed(0))
    assert torch.equal(sample(with_lora(unet, lora, 1.0, *ALL_STEPS, "test"), DEMO), plain)
    pairs = pairs_of(lora)
    assert pairs.keys() == {each.name for each in projections}
    assert sum(down.numel() + up.numel() for down, up, _ in pairs.values()) == parameter_count(projections, 4)
    assert all(down.abs().mean() > 0.01 for down, _, _ in pairs.values())


@pytest.mark.parametrize("family", ["demo", "sdxl"])
def test_it_is_what_the_stock_loader_makes_of_its_file(family, tiny_models, unet, tmp_path, monkeypatch):
    import folder_paths

    import nodes

    model, family = (unet, DEMO) if family == "demo" else (tiny_models.load(family), FAMILIES[family])
    lora = lora_for(model)
    save_file(lora, tmp_path / "adapter.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    merged, _ = nodes.LoraLoader().load_lora(model, None, "adapter.safetensors", 0.7, 0.0)
    assert merged.patches.keys() == {each.key for each in attention_projections(model.model, "all")}
    before, theirs = sample(model, family, steps=1), sample(merged, family, steps=1)
    ours = sample(with_lora(model, lora, 0.7, *ALL_STEPS, "test"), family, steps=1)
    assert difference(ours, before) > 0.05
    assert difference(ours, theirs) < 0.01 * difference(ours, before)


@pytest.mark.parametrize(
    ("start", "end", "active"),
    [(0.0, 0.1, "1000"), (0.1, 0.6, "0110"), (0.5, 1.0, "0011"), (0.0, 1.0, "1111"), (0.6, 0.6, "0000")],
)
@pytest.mark.parametrize("walk", ["sampling", "inversion"])
def test_the_noise_level_says_when_it_acts(unet, start, end, active, walk):
    sampling = unet.get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(percent) for percent in (0.001, 0.3, 0.55, 0.9, 1.0)])
    model = with_lora(unet, lora_for(unet, "down"), 1.0, start, end, "test")
    layer = model.model.diffusion_model.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    seen = {}

    def watch(executor, x, t, *args, **kwargs):
        seen[float(t[0])] = str(len(layer._forward_hooks))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "watch", watch)
    levels = sigmas[:4] if walk == "sampling" else sigmas[1:4]
    acts = active[-len(levels) :]
    with nullcontext() if "1" in acts else pytest.raises(NoStepError, match="test: no step of this run lies between"):
        assert sample(model, DEMO, sigmas=sigmas if walk == "sampling" else sigmas[:4].flip(0)).isfinite().all()
        assert "".join(seen[float(sigma)] for sigma in levels) == acts
    assert not layer._forward_hooks


def test_at_strength_zero_it_is_the_base_model_and_clones_are_left_alone(unet, plain):
    before = {name: weight.clone() for name, weight in unet.model.state_dict().items()}
    lora = lora_for(unet)
    assert torch.equal(sample(with_lora(unet, lora, 0.0, 1.0, 1.0, "test"), DEMO), plain)
    adapted = with_lora(unet, lora, 0.5, 0.0, 0.1, "test")
    assert difference(sample(adapted, DEMO), plain) > 1e-3
    (kept,) = adapted.model_options["transformer_options"]["coherence_loras"]
    assert not kept._moved  # nothing of it stays on a device
    assert torch.equal(sample(with_lora(unet, lora, 0.0, *ALL_STEPS, "test"), DEMO), plain)
    assert torch.equal(sample(unet, DEMO), plain)
    assert all(torch.equal(weight, before[name]) for name, weight in unet.model.state_dict().items())


def test_adapters_stack_and_their_strengths_add(unet, plain):
    lora = lora_for(unet, gain=0.2)
    halves = with_lora(with_lora(unet, lora, 0.25, *ALL_STEPS, "test"), lora, 0.25, *ALL_STEPS, "test")
    whole = sample(with_lora(unet, lora, 0.5, *ALL_STEPS, "test"), DEMO)
    assert difference(sample(halves, DEMO), whole) < 1e-2 * difference(whole, plain)


@pytest.mark.slow
def test_a_compiled_model_is_adapted_alike(unet, plain):
    """Compiled before there are hooks, and used without them after."""
    expected = [sample(with_lora(unet, lora_for(unet, "down", seed), 1.0, 0.0, 0.5, "test"), DEMO) for seed in (0, 1)]
    assert difference(expected[0], expected[1]) > 1e-2
    torch.compiler.reset()
    compiled = unet.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.input_blocks.1.1.transformer_blocks.0"])
    adapted = [with_lora(compiled, lora_for(unet, "down", seed), 1.0, 0.0, 0.5, "test") for seed in (0, 1)]
    for model, picture in ((compiled, plain), *zip(adapted, expected, strict=True), (compiled, plain)):
        assert difference(sample(model, DEMO), picture) < 1e-5


def parts_of_one(unet):
    """A, B and alpha of one projection, by the ends of their names."""
    lora = lora_for(unet, "down")
    first = min(lora).partition(".")[0]
    return {name.partition(".")[2]: x for name, x in lora.items() if name.startswith(f"{first}.")}


def test_applying_an_adapter_says_as_training_it_does_which_models_it_takes(unet, tiny_models):
    adapter = GEAdapter(lora_for(unet, "down"), torch.zeros(0, 8), None, Training("BaseModel", "down", 3, 1))
    wan = tiny_models.load("wan21")
    with pytest.raises(ValueError, match=r"UNet \(SD1\.5, SD2, SDXL\), got WanModel\. Use a model with a UNet\."):
        GEAdapterApply.execute(wan, adapter, 1.0, 0.0, 1.0)


def test_a_model_of_another_kind_is_refused(unet, tiny_models):
    other = tiny_models.load("sd15")
    with pytest.raises(ValueError, match="is 128 × 128 in this model, the adapter is for 64 × 64"):
        with_lora(other, lora_for(unet, "down"), 1.0, *ALL_STEPS, "test")
    wan = tiny_models.load("wan21")
    with pytest.raises(ValueError, match=r"adapter's 16 layers, but WAN21 has none of them .* trained on, SDXL\."):
        with_lora(wan, lora_for(unet, "down"), 1.0, *ALL_STEPS, "test", "SDXL")
    less = with_lora(unet, lora_for(unet, "down"), 1.0, *ALL_STEPS, "test")
    lora = {**lora_for(unet, "down"), **{f"lora_unet_other.{n}": x for n, x in parts_of_one(unet).items()}}
    with pytest.raises(ValueError, match=r"adapter's 17 layers, but \w+ has 16 of them \(missing: lora_unet_other\)"):
        with_lora(less, lora, 1.0, *ALL_STEPS, "test")
    with pytest.raises(ValueError, match="UNet"):
        attention_projections(wan.model, "down")
    with pytest.raises(ValueError, match=r"start_percent is 0\.4 and end_percent 0\.2"):
        with_lora(unet, lora_for(unet), 1.0, 0.4, 0.2, "test")


def test_in_an_inversion_it_is_told_whether_it_acted(unet):
    """The last level of an inversion is a level of the model's, too: a LoRA may act there alone."""
    sigmas = calculate_sigmas(unet.get_model_object("model_sampling"), "simple", 4)
    latent = {"samples": torch.randn(DEMO.latent_shape, generator=torch.Generator().manual_seed(0))}
    inversion = Inversion("none", refine_iterations=1)

    def inverted(model):
        with torch.inference_mode():
            return invert_latent(model, DEMO.conditioning()[0], None, 1.0, latent, sigmas, inversion, 0, "test")[0]

    before = inverted(unet)
    assert difference(inverted(with_lora(unet, lora_for(unet), 1.0, 0.0, 0.1, "Apply")), before) > 1e-3
    idle = with_lora(unet, lora_for(unet), 1.0, 0.3, 0.4, "Apply")
    with pytest.raises(NoStepError, match=r"Apply: no step of this run lies between start_percent 0\.3 and"):
        inverted(idle)


ACTING = {
    "LoRA": lambda model, *span: with_lora(model, lora_for(model), 1.0, *span, "Apply"),
    "tap": lambda model, *span: CrossFrameAttention.execute(model, "first", "*", *span)[0],
}


@pytest.mark.parametrize("span", [(0.0, 0.1), (0.6, 0.8)], ids=["early", "late"])
@pytest.mark.parametrize("acts", ACTING)
def test_a_pass_that_measures_or_trains_says_nothing_of_steps(unet, acts, span):
    acting = ACTING[acts](unet, *span)
    figures_of(acting, demo_start(unet), [0])
    tuned(put(acting, TUNE_A_VIDEO))
    with torch.inference_mode():
        train_adapter(acting, clips(1, vision=False), QUICK)
