"""TokenFlow against a reference written from the paper, token by token, in float64; and its limits."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attended import Outputs, attended
from clear_errors import unclear
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.nodes.plug_and_play import PlugAndPlay
from coherence.nodes.token_flow import TokenFlow as Node
from coherence.techniques import plug_and_play
from coherence.techniques.branches import OfClip
from coherence.techniques.choice import SomeHeads
from coherence.techniques.pairs import NoEditError
from coherence.techniques.tokenflow import TokenFlow, neighbours
from editing_runs import demo_run
from tiny_models import sample
from watching import DEMO, difference
from word_edits import aligned

FRAMES = 7


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def run(unet):
    return demo_run(unet, shape=(FRAMES, *DEMO.latent_shape[1:]), steps=1)


def reference(call, keyframes):
    """The outputs of every branch, (branches, frames, tokens, channels)."""
    by_branch = [x.unflatten(0, (len(call.branches), -1)) for x in (call.input, call.q, call.k, call.v)]
    outs = []
    for (_, tag), x, q, k, v in zip(call.branches, *by_branch, strict=True):
        if tag.clip == 0:
            outs.append(attended(q, k, v, call.heads))
            continue
        source = next(n for n, (index, t) in enumerate(call.branches) if t.clip == 0 and t.index == tag.index)
        x = F.normalize(by_branch[0][source].double(), dim=-1)
        keys, values = (y[keyframes].flatten(0, 1) for y in (k, v))
        edited = {place: attended(q[place], keys, values, call.heads) for place in keyframes}
        frames = []
        for i in range(len(q)):
            if i in keyframes:
                frames.append(edited[i])
                continue
            sides = [[p for p in keyframes if p < i][-1:], [p for p in keyframes if p > i][:1]]
            sides = [side[0] for side in sides if side]
            distances = [abs(side - i) for side in sides]
            out = 0
            for side, distance in zip(sides, distances, strict=True):
                weight = 1 if len(sides) == 1 else (sum(distances) - distance) / sum(distances)
                nearest = [int((x[i][p] @ x[side].T).argmax()) for p in range(x.shape[1])]
                out = out + weight * edited[side][nearest]
            frames.append(out)
        outs.append(torch.stack(frames))
    return torch.stack(outs)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_every_layer_of_an_edit_gives_what_the_reference_does(unet, run, chunk):
    outputs = Outputs()
    model = tap(Node.execute(unet, chunk, 5)[0], outputs, layers="*", kinds=["spatial"], asked_by="test")[0]
    replace(run, model=model).edit("")
    assert len(outputs.seen) >= 4
    for call, out in outputs.seen:
        assert {type(tag) for _, tag in call.branches} == {OfClip}
        keyframes = TokenFlow(chunk, 5).keyframes(FRAMES, call.sigma)
        assert len(keyframes) == -(-FRAMES // chunk)
        expected = reference(call, keyframes)
        assert difference(out.unflatten(0, (len(call.branches), -1)), expected) <= 1e-4
        target = next(n for n, (_, tag) in enumerate(call.branches) if tag.clip == 1)
        plain = attended(
            *(x.unflatten(0, (len(call.branches), -1))[target] for x in (call.q, call.k, call.v)), call.heads
        )
        assert difference(plain, expected[target]) >= 1e-2


def test_frames_take_from_both_sides_by_distance():
    assert neighbours(0, [2, 6]) == [(0, 1.0)]
    assert neighbours(2, [2, 6]) == [(0, 1.0)]
    assert neighbours(3, [2, 6]) == [(0, 0.75), (1, 0.25)]
    assert neighbours(6, [2, 6]) == [(1, 1.0)]
    assert neighbours(9, [2, 6]) == [(1, 1.0)]


def test_chunks_of_frames_give_the_whole_clips_result_and_plug_and_play_goes_along(unet, run):
    both = PlugAndPlay.execute(unet)[0]
    whole = replace(run, model=Node.execute(both, 3, 1)[0]).edit("")
    parts = replace(run, model=Node.execute(both, 3, 1, frames_per_batch=2)[0]).edit("")
    other_order = replace(run, model=PlugAndPlay.execute(Node.execute(unet, 3, 1)[0])[0]).edit("")
    for one, other, third in zip(whole, parts, other_order, strict=True):
        assert difference(other, one) <= 1e-4
        assert torch.equal(third, one)
    assert difference(replace(run, model=Node.execute(unet, 3, 1)[0]).edit("")[0], whole[0]) >= 1e-2


def test_prompts_of_other_lengths_flow_alike_and_the_source_is_untouched(unet, run):
    model = Node.execute(unet, 3, 1)[0]
    together = replace(run, model=model).edit("")
    longer = [[torch.cat([run.target[0][0]] * 2, dim=1), {}]]  # equal keys twice: the same cross-attention
    apart = replace(run, model=model, target=longer).edit("")
    for one, other in zip(together, apart, strict=True):
        assert difference(other, one) <= 1e-4
    free = run.edit("")
    assert difference(together[1], free[1]) <= 1e-5
    assert difference(together[0], free[0]) >= 1e-2


def test_what_divides_a_layer_is_refused_beside_it(unet, run):
    flowing = replace(run, model=Node.execute(unet, 3, 1)[0])
    some = plug_and_play.PlugAndPlay(SomeHeads({}))
    exchanging, _ = tap(flowing.model, some, layers="*", kinds=("spatial",), asked_by="PlugAndPlay")
    words, alignment = aligned(flowing, "a red cat", "a blue cat")
    for edit in (
        lambda: flowing.edit(choice=SomeHeads({})),
        lambda: replace(flowing, model=exchanging).edit(""),
        lambda: words.edit(replace="blend", alignment=alignment),
    ):
        with pytest.raises(ValueError, match=r"TokenFlow takes whole layers.*or remove TokenFlow") as raised:
            edit()
        assert not unclear(raised.value)
    apart = replace(run, model=Node.execute(unet, 3, 1, "output.3")[0])
    assert apart.edit("input.1", choice=SomeHeads({"input.1.attn1": frozenset({0})}))[0].isfinite().all()


def test_outside_an_edit_it_is_refused(unet):
    with pytest.raises(NoEditError, match="TokenFlow takes from the source clip of an edit") as raised:
        sample(Node.execute(unet)[0], DEMO, steps=1)
    assert not unclear(raised.value)
