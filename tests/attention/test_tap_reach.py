"""What a technique may ask of the tap beside q, k and v: the layer's input, features, other rows, frames ahead."""

from dataclasses import dataclass, field

import pytest
import torch
from attended import Outputs, attended
from clear_errors import unclear
from coherence.attention.chunks import ChunkError
from coherence.attention.sites import NoSuchSiteError, features_of
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.techniques.momentum import TemporalMomentum, average_over_frames, momentum_matrix
from coherence.techniques.technique import MergedError, NoInputError, Stage, Technique, seen_input
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from tiny_models import sample
from watching import demo_of, difference

FRAMES = 6
CLIP = demo_of(FRAMES)
PLACE = "output.1.attn1"


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def plain(unet):
    return sample(unet, CLIP, steps=1)


def on(model, technique, layers=PLACE, **where):
    return tap(model, technique, layers=layers, kinds=["spatial"], asked_by="TestNode", **where)[0]


class Sees(Technique):
    """Projects the input it sees, as the layer does."""

    needs_input = True
    stage = Stage.MAPS

    def __init__(self):
        self.errors = []

    def attend(self, call, proceed):
        attention = call.site.module
        projected = [to(seen_input(call)) for to in (attention.to_q, attention.to_k, attention.to_v)]
        self.errors += [float((a - b).abs().max()) for a, b in zip(projected, (call.q, call.k, call.v), strict=True)]
        return proceed(call.q, call.k, call.v)


def replaced(q, k, v, extra_options):
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(q, k, v, extra_options["n_heads"])


def test_the_input_is_what_q_k_and_v_are_projected_from(unet, plain):
    sees = Sees()
    assert torch.equal(sample(on(unet, sees, "*"), CLIP, steps=1), plain)
    assert sees.errors
    assert max(sees.errors) == 0


def test_the_input_is_seen_where_another_pack_replaces_the_attention(unet):
    theirs = unet.clone()
    theirs.set_model_attn1_replace(replaced, "output", 1)
    sees = Sees()
    assert torch.equal(sample(on(theirs, sees), CLIP, steps=1), sample(theirs, CLIP, steps=1))
    assert sees.errors
    assert max(sees.errors) == 0


def test_the_input_of_a_copy_is_its_own(unet):
    class Parts(Technique):
        stage = Stage.COPIES

        def attend(self, call, proceed):
            halves = [call.only([position]) for position in range(len(call.branches))]
            return torch.cat([proceed(h.q, h.k, h.v, branches=h.branches) for h in halves])

    sees = Sees()
    sample(on(on(unet, sees), Parts()), CLIP, steps=1, cfg=3.0)
    assert len(sees.errors) == 6  # of both branches
    assert max(sees.errors) == 0


def test_a_model_that_shows_no_input_is_refused(tiny_models):
    with pytest.raises(NoSuchSiteError, match=r"TestNode compares the tokens .* SD1\.5, SD2, SDXL") as raised:
        tap(tiny_models.load("flux"), Sees(), layers="*", kinds=["joint"], asked_by="TestNode")
    assert not unclear(raised.value)


def test_a_layer_whose_tokens_another_node_changed_shows_no_input(unet):
    calls = []

    class Fewer(Technique):
        def attend(self, call, proceed):
            with pytest.raises(NoInputError, match="cannot be seen") as raised:
                seen_input(type(call)(**{**vars(call), "q": call.q[:, :3]}))
            assert not unclear(raised.value)
            calls.append(call)
            return proceed(call.q, call.k, call.v)

    sample(on(unet, Fewer()), CLIP, steps=1)
    assert calls


# Features ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scales(Technique):
    factor: float
    seen: list = field(default_factory=list)

    def attend(self, call, proceed):
        return proceed(call.q, call.k, call.v)

    def transform(self, call):
        self.seen.append(call)
        return call.features * self.factor


def test_every_convolutional_and_residual_block_is_reached_in_order(unet, plain):
    scales = Scales(1.0)
    assert torch.equal(sample(on(unet, scales, features="*"), CLIP, steps=1), plain)
    names = [site.name for site in features_of(unet.model.diffusion_model)]
    assert {"input.0.conv", "input.1.res", "middle.0.res.0", "middle.0.res.1", "output.1.res"} <= set(names)
    assert [call.site.name for call in scales.seen] == names
    assert all(len(call.features) == len(call.branches) * FRAMES for call in scales.seen)


def test_what_a_residual_block_adds_is_replaced_and_nothing_is_left_behind(unet, plain):
    without = sample(on(unet, Scales(0.0), features="output.1.res"), CLIP, steps=1)
    assert torch.equal(sample(unet, CLIP, steps=1), plain)
    block = next(s.module for s in features_of(unet.model.diffusion_model) if s.name == "output.1.res")
    assert not block._forward_hooks
    silent = load_model()
    last = next(s.module for s in features_of(silent.model.diffusion_model) if s.name == "output.1.res")[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    assert torch.equal(without, sample(silent, CLIP, steps=1))
    assert not torch.equal(without, plain)


def test_features_that_a_model_has_not_are_refused(unet, tiny_models):
    with pytest.raises(NoSuchSiteError, match=r"'output\.9' matches no convolutional .* output\.1\.res"):
        on(unet, Scales(1.0), features="output.9")
    with pytest.raises(NoSuchSiteError, match=r"residual blocks .* Flux has none"):
        tap(tiny_models.load("flux"), Scales(1.0), layers="*", kinds=["joint"], asked_by="TestNode", features="*")


# Other rows ----------------------------------------------------------------------------------------------------------


class Joins(Technique):
    """All frames' tokens in one row."""

    stage = Stage.MERGE

    def attend(self, call, proceed):
        frames, joined = (
            call.frames,
            [x.unflatten(0, (-1, call.frames)).flatten(1, 2) for x in (call.q, call.k, call.v)],
        )
        return proceed(*joined, merged=True).unflatten(1, (frames, -1)).flatten(0, 1)


def test_frames_are_merged_after_what_works_on_frames_whichever_node_came_first(unet):
    outs = []
    for first, second in ((Joins(), TemporalMomentum(0.8)), (TemporalMomentum(0.8), Joins())):
        outputs = Outputs()
        outs.append(sample(on(on(on(unet, first), second), outputs), CLIP, steps=1, cfg=3.0))
    assert torch.equal(*outs)
    [(call, out)], weights = outputs.seen, momentum_matrix(torch.full((FRAMES,), 0.8, dtype=torch.float64))
    k, v = (average_over_frames(x.double(), weights) for x in (call.k, call.v))
    joined = [x.unflatten(0, (2, FRAMES)).flatten(1, 2) for x in (call.q, k, v)]
    expected = attended(*joined, call.heads).unflatten(1, (FRAMES, -1)).flatten(0, 1)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_needs_whole_frames_after_merging_is_refused(unet):
    class Looks(Technique):
        stage = Stage.LOOK

        def attend(self, call, proceed):
            return proceed(call.q, call.k, call.v)

    with pytest.raises(MergedError, match=r"TestNode merges frames at attention layer output\.1\.attn1") as raised:
        sample(on(on(unet, Looks()), Joins()), CLIP, steps=1)
    assert not unclear(raised.value)
    theirs = PerturbedAttentionGuidance.execute(unet, 3.0).result[0]
    theirs.set_model_attn1_replace(replaced, "output", 1)
    with pytest.raises(MergedError, match="another node replaces the attention there") as raised:
        sample(on(theirs, Joins()), CLIP, steps=1)
    assert not unclear(raised.value)


# Frames ahead --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FromKey(Technique):
    """Every frame has the output of one that comes late."""

    frames_per_batch: int = 0
    key: int = 4
    supports_chunks = True
    by_frame = True

    def ahead(self, frame_indices, sigma):
        return (self.key,)

    def attend(self, call, proceed):
        frames = len(call.q) // len(call.branches)
        out = proceed(call.q, call.k, call.v).unflatten(0, (-1, frames))
        if call.memory is None:
            key = out[:, self.key : self.key + 1]
        elif call.runs_ahead:
            key = call.memory["key"] = out
        else:
            key = call.memory["key"]
        return key.expand_as(out).flatten(0, 1)


def test_frames_that_run_ahead_are_there_for_every_chunk(unet, plain):
    whole = sample(on(unet, FromKey()), CLIP, steps=1)
    for length in (1, 4, 5):
        parts = sample(on(unet, FromKey(length)), CLIP, steps=1)
        assert difference(parts, whole) <= 1e-4
    assert difference(whole, plain) >= 1e-2


def test_what_needs_the_frames_before_may_not_be_beside_frames_that_run_ahead(unet):
    model = tap(on(unet, FromKey(3)), TemporalMomentum(0.8), layers=PLACE, kinds=["spatial"], asked_by="Momentum")[0]
    with pytest.raises(ChunkError, match="TestNode lets some frames run ahead of the others, but Momentum"):
        sample(model, CLIP, steps=1)
    other = tap(on(unet, FromKey(3)), FromKey(3, 2), layers="*", kinds=["spatial"], asked_by="Other")[0]
    with pytest.raises(ChunkError, match="TestNode and Other let different frames run ahead"):
        sample(other, CLIP, steps=1)
