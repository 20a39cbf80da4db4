"""A pass that measures or trains leaves out guidance and caches; the log names what stays and changes predictions."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from adapter_runs import QUICK, clips
from coherence.attention.forms import TUNE_A_VIDEO
from coherence.demo.model import load_model
from coherence.training.ge_adapter_training import train_adapter
from comfy_extras.nodes_custom_sampler import CFGOverride
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from guidance_runs import guided
from inflation_runs import put
from measured import figures_of, maps_of
from register_runs import demo_start
from tiny_models import sample
from tuning_runs import tuned
from watching import DEMO, difference

PATCHES = {
    "U-I": lambda m: guided(m, "U-I", layers="input.1"),
    "strategy 1": lambda m: guided(m, "strategy 1", layers="input.1"),
    "strategy 4": lambda m: guided(m, "strategy 4", layers="input.1"),
    "two guidances": lambda m: guided(guided(m, "A-I"), "strategy 3", layers="input.1"),
    "PAG": lambda m: PerturbedAttentionGuidance.execute(m, 3.0)[0],
    "RescaleCFG": lambda m: RescaleCFG().patch(m, 0.7)[0],
    "CFGOverride": lambda m: CFGOverride.execute(m, 9.0, 0.0, 1.0)[0],
    "EasyCache": lambda m: EasyCacheNode.execute(m, 3.0, 0.0, 1.0, False)[0],
    "LazyCache": lambda m: LazyCacheNode.execute(m, 3.0, 0.0, 1.0, False)[0],
}
patched = pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)


@pytest.fixture(scope="module")
def unet():
    return load_model()


def adapted(model):
    return train_adapter(model, clips(), replace(QUICK, steps=3))


@pytest.fixture(scope="module")
def plain(unet):
    """What the plain model gives: figures, maps, an adapter, and the losses of tuning it."""
    start = demo_start(unet)
    maps = maps_of(unet, start, step=2, layer="input.1")[1]
    return SimpleNamespace(
        start=start,
        figures=figures_of(unet, start, range(4)),
        maps=maps,
        adapter=adapted(unet),
        losses=tuned(put(unet, TUNE_A_VIDEO)).history.losses,
    )


@pytest.mark.parametrize("name", [name for name in PATCHES if name != "CFGOverride"])
def test_the_patches_change_what_is_sampled(unet, name):
    assert difference(sample(PATCHES[name](unet), DEMO, steps=4), sample(unet, DEMO, steps=4)) > 1e-3


@patched
def test_a_register_is_that_of_the_plain_model(unet, plain, patch):
    assert figures_of(patch(unet), plain.start, range(4)) == plain.figures


@patched
def test_maps_are_those_of_the_plain_model_one_a_frame(unet, plain, patch):
    maps = maps_of(patch(unet), plain.start, step=2, layer="input.1")[1]
    assert len(maps) == len(plain.start.latent["samples"])
    assert all(torch.equal(ours.plain, theirs.plain) for ours, theirs in zip(maps, plain.maps, strict=True))


@pytest.mark.slow
@patched
def test_training_is_that_of_the_plain_model(unet, plain, patch):
    trained = adapted(patch(unet))
    assert trained.history.losses == plain.adapter.history.losses
    assert all(torch.equal(x, plain.adapter.adapter.lora[name]) for name, x in trained.adapter.lora.items())
    assert tuned(patch(put(unet, TUNE_A_VIDEO))).history.losses == plain.losses


def others_wrapper(apply_model, args):
    """As another pack sets it by set_model_unet_function_wrapper."""
    return apply_model(args["input"], args["timestep"], **args["c"])


def test_what_is_left_out_and_what_stays_is_named(unet, caplog):
    model = PATCHES["EasyCache"](PATCHES["PAG"](PATCHES["U-I"](unet)))
    model.set_model_unet_function_wrapper(others_wrapper)
    model.add_wrapper_with_key("diffusion_model", "another pack", lambda executor, *args, **how: executor(*args, **how))
    with caplog.at_level(logging.INFO):
        figures_of(model, demo_start(unet))
    (left_out,) = (each.getMessage() for each in caplog.records if "left out of this pass" in each.getMessage())
    assert "test (U-I)" in left_out
    assert "nodes_pag" in left_out
    assert "easycache" in left_out
    (warned,) = (each for each in caplog.records if "these stay on the model" in each.getMessage())
    assert warned.levelno == logging.WARNING
    assert "others_wrapper, another pack." in warned.getMessage()
    caplog.clear()
    figures_of(unet, demo_start(unet))
    assert "this pass" not in caplog.text
    assert "stay on the model" not in caplog.text
