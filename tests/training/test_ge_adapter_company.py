"""GE-Adapter inside the methods of its tables 1 and 2: both act, in either order of the nodes, or say why not."""

from dataclasses import replace

import comfy.clip_vision
import pytest
import torch
from coherence.demo.model import load_clip, load_model
from coherence.nodes.align_prompts import AlignPrompts
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.ge_adapter import GEAdapterApply, GEAdapterTokens
from coherence.nodes.plug_and_play import PlugAndPlay
from coherence.nodes.token_flow import TokenFlow
from coherence.nodes.vidtome import VidToMe
from coherence.samplers.replacing import AlignmentError
from coherence.training.ge_adapter import untrained
from editing_runs import demo_run
from random_lora import lora_for
from tiny_models import sample
from watching import DEMO, difference

METHODS = {
    "TokenFlow": lambda model: TokenFlow.execute(PlugAndPlay.execute(model)[0], chunk=2)[0],
    "VidToMe": lambda model: VidToMe.execute(model, chunk=2)[0],
    "vid2vid-zero": lambda model: CrossFrameAttention.execute(model, "all")[0],
    "Text2Video-Zero": lambda model: CrossFrameAttention.execute(model, "first")[0],
}


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def adapter(unet):
    start = untrained(unet.model, "down", 4, 2, 128, 16, 3, seed=3)
    return replace(start, lora=lora_for(unet, "down"))


def told(adapter, *prompts):
    """The prompts, with the tokens that the frames share and each frame's own before them."""
    pictures = comfy.clip_vision.Output()
    pictures.last_hidden_state = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(5))
    return tuple(GEAdapterTokens.execute(each, adapter, pictures)[0] for each in prompts)


def drawn(model, adapter, method):
    """A clip, or an edit where the method acts in edits alone."""
    if method not in ("TokenFlow", "vid2vid-zero"):
        return sample(model, DEMO, conditioning=told(adapter, *DEMO.conditioning()), steps=2)
    run = demo_run(model)
    source, target, negative = told(adapter, run.source, run.target, run.negative)
    what = {"replace": "cross_map"} if method == "vid2vid-zero" else {}
    return replace(run, source=source, target=target, negative=negative).edit("", **what)[0]


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_and_a_method_both_act_whichever_node_comes_first(unet, adapter, method):
    def apply(model):
        return GEAdapterApply.execute(model, adapter, 0.5, 0.0, 1.0)[0]

    put = METHODS[method]
    both = drawn(apply(put(unet)), adapter, method)
    assert difference(drawn(put(apply(unet)), adapter, method), both) <= 1e-5
    assert difference(drawn(put(unet), adapter, method), both) >= 1e-2
    assert difference(drawn(apply(unet), adapter, method), both) >= 1e-2


def test_words_that_were_aligned_without_the_tokens_are_refused(adapter):
    source, target, alignment, _ = AlignPrompts.execute(load_clip(), "a red star", "a blue star").args
    run = demo_run(load_model())
    source, target, negative = told(adapter, source, target, run.negative)
    run = replace(run, source=source, target=target, negative=negative)
    with pytest.raises(AlignmentError, match=r"without nodes that change its tokens in between, such as .*GEAdapter"):
        run.edit("", replace="cross_map", alignment=alignment)
