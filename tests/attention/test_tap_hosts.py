"""The tap under what a host does around a model: context windows, threads, compilation, little memory."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from coherence.attention.open_tap import _writing
from coherence.attention.sites import sites_of
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.nodes.inflation import TuneAVideoInflate
from coherence.samplers.lora_steps import with_lora
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.momentum import TemporalMomentum
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_torch_compile import TorchCompileModel
from random_lora import lora_for
from shallow_unet import shallow_unet
from tiny_models import FAMILIES, sample
from watching import DEMO, Watch, demo_of, difference, watched

SPATIAL = {"layers": "*", "kinds": ["spatial"], "asked_by": "test"}


@pytest.fixture(scope="module")
def unet():
    return load_model()


def in_windows(model, dim, length, overlap=0, causal=False):
    return ContextWindowsManualNode.execute(
        model, length, overlap, "standard_static", 1, False, "pyramid", dim, False, [], causal_window_fix=causal
    ).result[0]


def frames_seen(watch):
    return list(dict.fromkeys(call.frame_indices for call in watch.calls))


def test_a_window_of_pictures_holds_its_own_frames(unet):
    clip = demo_of(5)
    model, watch = watched(in_windows(unet, dim=0, length=3, overlap=1), kinds=["spatial"])
    sample(model, clip, steps=1)
    assert frames_seen(watch) == [(0, 1, 2), (2, 3, 4)]
    assert {call.rows_per_branch for call in watch.calls} == {3}


@pytest.mark.parametrize(("causal", "second"), [(False, (2, 3)), (True, (1, 2, 3))])
def test_a_window_of_a_video_holds_its_own_frames_and_the_anchor(tiny_models, causal, second):
    wan = FAMILIES["wan21"]
    clip = type(DEMO)(latent_shape=(1, 16, 4, 16, 16), conditioning=wan.conditioning)
    model, watch = watched(in_windows(tiny_models.load("wan21"), dim=2, length=2, causal=causal), layers="blocks.0")
    sample(model, clip, steps=1)
    assert frames_seen(watch) == [(0, 1), second]
    for call in watch.calls:
        assert (call.leading_tokens, call.tokens_per_frame) == (0, 64)
        assert call.q.shape[1] == 64 * call.frames


def call_model(model):
    """One call as the sampler makes it; the threads of one sampler share their model in this way."""
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(DEMO.latent_shape, generator=generator), torch.randn(3, 32, 128, generator=generator)
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
    with torch.inference_mode():
        return model.model.apply_model(x, torch.full((3,), 5.0), c_crossattn=context, transformer_options=options)


class Meet(Watch):
    """Looks, when as many others do so too."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def attend(self, call, proceed):
        self.barrier.wait()
        return super().attend(call, proceed)


def test_clones_on_several_threads_do_not_leak_into_each_other(unet):
    barrier = threading.Barrier(3, timeout=100)
    watches = [Meet(barrier) for _ in range(3)]
    clones = [tap(unet, watch, **SPATIAL)[0] for watch in watches]
    clones[1] = tap(clones[1], CrossFrame("first"), **SPATIAL)[0]
    with ThreadPoolExecutor(3) as threads:
        outputs = list(threads.map(call_model, clones))
    alone, crossed = call_model(unet), call_model(tap(unet, CrossFrame("first"), **SPATIAL)[0])
    assert difference(crossed, alone) > 1e-2
    for output, expected in zip(outputs, (alone, crossed, alone), strict=True):
        assert torch.equal(output, expected)
    for watch in watches:
        assert [call.site for call in watch.calls] == [site for site in sites_of(unet) if site.kind == "spatial"]


def test_weights_that_are_loaded_as_they_are_needed(unet):
    """As ``--lowvram`` does: only some modules are loaded, the others bring their weights at every call."""
    model, watch = watched(unet)
    plain = call_model(model)
    model.detach()
    model.load(torch.device("cpu"), lowvram_model_memory=model.model_size() // 2)
    assert model.model.model_lowvram
    assert torch.equal(call_model(model), plain)
    sites = sites_of(unet)
    assert [call.site for call in watch.calls] == sites * 2
    model.detach()


class Counted:
    """A compiler that runs what it was given, and counts."""

    def __init__(self):
        torch.compiler.reset()  # what other tests compiled counts towards the limit of a function
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "tapped_first"), [("diffusion_model", True), ("diffusion_model.blocks", False)])
def test_compiled_code_is_tapped_and_compiled_once(tiny_models, parts, tapped_first):
    family, model, compiler = FAMILIES["cogvideox"], tiny_models.load("cogvideox"), Counted()
    plain, sites = sample(model, family), sites_of(model)
    keys = [parts] if parts == "diffusion_model" else [f"{parts}.{number}" for number in range(len(sites))]

    def compiled(model):
        clone = model.clone()
        set_torch_compile_wrapper(clone, backend=compiler, keys=keys)
        return clone

    clone, watch = watched(model if tapped_first else compiled(model), layers="blocks.1")
    clone = compiled(clone) if tapped_first else clone
    assert difference(sample(clone, family), plain) < 1e-4
    assert {call.site.name for call in watch.calls} == {"blocks.1"}
    graphs = compiler.graphs
    sample(clone, family)
    assert compiler.graphs == graphs > 0

    everywhere, watch_all = watched(clone)
    sample(everywhere, family)
    assert {call.site.name for call in watch_all.calls} == {site.name for site in sites}


@pytest.mark.slow
def test_code_that_any_patches_share_is_not_used_for_ours_nor_made_of_them(caplog):
    """As ComfyUI's TorchCompileModel has it: its code is used again whatever transformer options hold."""
    unet = shallow_unet()
    patches: dict[str, Callable] = {
        "plain": lambda model: model,
        "momentum": lambda model: tap(model, TemporalMomentum(0.8, ""), **SPATIAL)[0],
        "LoRA": lambda model: with_lora(model, lora_for(model, "down"), 1.0, 0.0, 0.5, "test"),
        "inflation": lambda model: TuneAVideoInflate.execute(model, "*")[0],
    }
    torch.compiler.reset()
    expected = {name: sample(patch(unet), DEMO) for name, patch in patches.items()}
    compiled = TorchCompileModel.execute(unet, "eager")[0]
    models = {name: patch(compiled) for name, patch in patches.items()}
    for name in ("momentum", "plain", "LoRA", "inflation", "momentum", "plain"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            drawn = sample(models[name], DEMO)
        assert difference(drawn, expected[name]) < 1e-5
        assert name == "plain" or difference(drawn, expected["plain"]) > 1e-3
        assert caplog.text.count("this run is not compiled") == (name != "plain")


def test_a_hook_that_another_thread_takes_away_meanwhile_does_no_harm():
    """torch calls it once more, and without the keyword arguments."""
    module = torch.nn.Identity()
    module.register_forward_pre_hook(lambda *_: hook.remove())
    hook = module.register_forward_pre_hook(
        _writing({"name": ["input.1.attn1"]}, lambda *_: {}, False), with_kwargs=True
    )
    assert module(1) == 1
