"""Plug-and-Play against source and target that go through the model one after the other, with what is taken stored."""

from dataclasses import replace

import pytest
import torch
from clear_errors import unclear
from coherence.attention.sites import features_of
from coherence.demo.model import load_model
from coherence.nodes.checks import InputError
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.plug_and_play import PlugAndPlay
from coherence.techniques.pairs import NoEditError
from editing_runs import StoredMaps, demo_run, stepwise
from tiny_models import sample
from watching import DEMO, difference


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def run(unet):
    return demo_run(unet)


class Stored(StoredMaps):
    """The source's features are kept by a hook of torch's on its block, and handed to the target."""

    def hook(self, _module, _args, out):
        if self.keeping:
            self.features = out.clone()
            return None
        return self.features


def test_the_target_takes_map_and_features_as_if_they_had_been_stored(unet, run):
    layers = "output"
    target, source = replace(run, model=PlugAndPlay.execute(unet, True, layers)[0]).edit("", source_cfg=4.0)
    stored = Stored()
    block = next(s.module for s in features_of(unet.model.diffusion_model) if s.name == "output.0.res")
    hook = block.register_forward_hook(stored.hook)
    try:
        expected_target, expected_source = stepwise(run, stored, layers, 4.0, 4.0)
    finally:
        hook.remove()
    assert difference(source, expected_source) <= 1e-4
    assert difference(target, expected_target) <= 1e-4
    for features, other in ((False, layers), (True, "output.1")):
        less = replace(run, model=PlugAndPlay.execute(unet, features, other)[0]).edit("", source_cfg=4.0)[0]
        assert difference(target, less) >= 1e-2


def test_prompts_of_other_lengths_take_the_same_features(unet, run):
    model = PlugAndPlay.execute(unet)[0]
    together = replace(run, model=model).edit("")
    longer = [[torch.cat([run.target[0][0]] * 2, dim=1), {}]]  # equal keys twice: the same cross-attention
    apart = replace(run, model=model, target=longer).edit("")
    for one, other in zip(together, apart, strict=True):
        assert difference(other, one) <= 1e-4


def test_equal_prompts_give_equal_clips_bitwise(unet, run):
    assert torch.equal(*replace(run, model=PlugAndPlay.execute(unet)[0], target=run.source).edit(""))


def test_the_papers_layers_are_the_decoders_without_the_first_and_a_registry_replaces_them(unet, run):
    registry = SelectAttentionLayers.execute(unet, "output.1-3")[0]
    outs = [
        replace(run, model=PlugAndPlay.execute(unet, **how)[0], steps=1).edit("")[0]
        for how in ({}, {"layers": "output.1-3"}, {"layers": "output.0", "registry": registry})
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_outside_an_edit_it_is_refused(unet):
    with pytest.raises(NoEditError, match="PlugAndPlay takes from the source clip of an edit") as raised:
        sample(PlugAndPlay.execute(unet)[0], DEMO, steps=1)
    assert not unclear(raised.value)


def test_features_need_a_residual_block(tiny_models):
    with pytest.raises(InputError, match=r"no residual block at double_blocks\.0") as raised:
        PlugAndPlay.execute(tiny_models.load("flux"), True, "double_blocks")
    assert not unclear(raised.value)
    assert PlugAndPlay.execute(tiny_models.load("flux"), False, "double_blocks")[0]
