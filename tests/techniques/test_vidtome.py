"""VidToMe against a reference that merges token by token, as the paper has it, in float64; and its limits."""

import pytest
import torch
from attended import Outputs, attended
from coherence.attention.chunks import ChunkError
from coherence.attention.sites import Site
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.frames.streams import of_level
from coherence.nodes.vidtome import VidToMe as Node
from coherence.techniques.momentum import TemporalMomentum
from coherence.techniques.technique import AttentionCall
from coherence.techniques.vidtome import VidToMe
from tiny_models import sample
from watching import demo_of, difference

CLIP = demo_of(7)
HEADS = 2


class Token:
    """``stands``: the token that this one was merged into, itself at first."""

    def __init__(self, *vectors):
        self.x, self.q, self.k, self.v = vectors
        self.stands = self

    @property
    def last(self):
        return self if self.stands is self else self.stands.last


def merge(source, others, ratio):
    """Gives the most similar tokens of ``source`` to ``others``; the rest of ``source``."""
    cosines = torch.stack([t.x for t in source]) @ torch.stack([t.x for t in others]).T
    best, where = cosines.max(dim=1)
    order = sorted(range(len(source)), key=lambda i: -float(best[i]))
    for i in order[: int(len(source) * ratio)]:
        source[i].stands = others[int(where[i])]
    return [source[i] for i in order[int(len(source) * ratio) :]]


def reference(technique, frames, sigma, heads):
    """The outputs of one branch; ``frames``: of each its tokens."""
    outputs, carried = [None] * len(frames), []
    for number, (start, stop) in enumerate(technique.chunks(len(frames), sigma)):
        source = of_level(technique.seed, sigma, number)
        whole, rest = frames[start:stop], []
        while len(whole) > 1:
            stride = min(4, len(whole))
            chosen = int(torch.randint(stride, (), generator=source))
            into = [frame for place, frame in enumerate(whole) if place % stride == chosen]
            others = [token for frame in whole if frame not in into for token in frame]
            rest = rest + merge(others, [token for frame in into for token in frame] + rest, technique.local_ratio)
            whole = into
        local = [token for frame in whole for token in frame] + rest
        # tokens of an earlier chunk go on as new ones: what they are merged into now changes no earlier output
        carried = [Token(t.x, t.q, t.k, t.v) for t in carried]
        there = local + carried
        if carried and technique.global_ratio:
            gives_way = bool(torch.randint(2, (), generator=source))
            some, others = (local, carried) if gives_way else (carried, local)
            there = merge(some, others, technique.global_ratio) + others
        out = attended(*(torch.stack([getattr(t, part) for t in there])[None] for part in "qkv"), heads)[0]
        place = {id(token): n for n, token in enumerate(there)}
        for frame in range(start, stop):
            outputs[frame] = torch.stack([out[place[id(token.last)]] for token in frames[frame]])
        carried = [token.last for token in local] if technique.global_ratio else []
    return torch.stack(outputs)


def by_reference(technique, call):
    x = torch.nn.functional.normalize(call.input.double(), dim=-1)
    rows = [[Token(*vectors) for vectors in zip(*parts, strict=True)]
            for parts in zip(x, call.q.double(), call.k.double(), call.v.double(), strict=True)]  # fmt: skip
    size = call.rows_per_branch
    clips = [rows[start : start + size] for start in range(0, len(rows), size)]
    return torch.cat([reference(technique, clip, call.sigma, call.heads) for clip in clips])


def a_call(frames=7, branches=2, sigma=1.5, alike=0.5):
    g = torch.Generator().manual_seed(frames)
    one = torch.randn(branches, 1, 12, 8, generator=g, dtype=torch.float64)
    x = (alike * one + (1 - alike) * torch.randn(branches, frames, 12, 8, generator=g, dtype=torch.float64)).flatten(
        0, 1
    )
    q, k, v = (x @ (2 * torch.randn(8, 8, generator=g, dtype=torch.float64)) for _ in "qkv")
    site = Site("input.1.attn1", 0, "spatial", HEADS, None)
    tags = tuple((n, f"branch {n}") for n in range(branches))
    return AttentionCall(q, k, v, HEADS, site, tags, tuple(range(frames)), sigma, input=x)


def host(q, k, v, merged=False):
    return attended(q, k, v, HEADS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", [(4, 0.9, 0.8), (3, 0.5, 0.5), (7, 0.9, 0.0), (6, 0.3, 0.8), (1, 0.9, 1.0)])
def test_the_output_is_the_references(settings, seed):
    technique, call = VidToMe(*settings, seed), a_call()
    out = technique.attend(call, host)
    assert difference(out, by_reference(technique, call)) <= 1e-5  # the unit vectors are float32
    assert difference(out, host(call.q, call.k, call.v)) >= 0.05


@pytest.fixture(scope="module")
def unet():
    return load_model()


def test_every_layer_of_a_model_gives_what_the_reference_does(unet):
    outputs = Outputs()
    technique = VidToMe(3, 0.9, 0.8, 5)
    model = tap(Node.execute(unet, 3, 0.9, 0.8, 5)[0], outputs, layers="*", kinds=["spatial"], asked_by="test")[0]
    sample(model, CLIP, steps=1, cfg=3.0)
    assert len(outputs.seen) >= 4
    for call, out in outputs.seen:
        assert difference(out, by_reference(technique, call)) <= 1e-4


@pytest.mark.parametrize("global_ratio", [0.0, 0.8])
def test_at_local_ratio_0_it_is_plain_attention_bitwise(unet, global_ratio):
    assert torch.equal(sample(Node.execute(unet, 4, 0.0, global_ratio)[0], CLIP, steps=1), sample(unet, CLIP, steps=1))


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_equal_frames_merge_into_one_and_attend_as_it_does(chunk):
    call = a_call(alike=1.0)
    out = VidToMe(chunk, 1.0, 1.0, 3).attend(call, host)
    assert difference(out, host(call.q, call.k, call.v)) <= 1e-12


def test_what_the_host_is_given_is_what_is_left():
    seen = []

    def counting(q, k, v, merged=False):
        assert merged
        seen.append((len(q), q.shape[-2], k.shape[-2]))
        return attended(q, k, v, HEADS)

    VidToMe(8, 0.9, 0.0, 1).attend(a_call(frames=4, branches=3), counting)
    assert sum(tokens for _, tokens, _ in seen) < 2.6 * 12  # of 4 · 12, in two chunks or one
    assert all(rows == 3 and queries == keys for rows, queries, keys in seen)


def test_the_same_seed_gives_the_same_bits_and_branches_do_not_see_each_other():
    technique, call = VidToMe(3, 0.9, 0.8, 2), a_call()
    whole = technique.attend(call, host)
    assert torch.equal(technique.attend(call, host), whole)
    parts = [technique.attend(call.only([n]), host) for n in (0, 1)]
    assert difference(torch.cat(parts), whole) <= 1e-12
    assert difference(VidToMe(3, 0.9, 0.8, 3).attend(call, host), whole) >= 0.01


def test_steps_cut_the_clip_anew():
    cuts = {tuple(VidToMe(4, seed=1).chunks(12, sigma / 4)) for sigma in range(40)}
    assert len(cuts) >= 7  # 4 lengths of the first chunk, from either end
    for cut in cuts:
        assert sorted(frame for start, stop in cut for frame in range(start, stop)) == list(range(12))
        assert max(stop - start for start, stop in cut) <= 4


def test_chunks_of_other_nodes_are_refused(unet):
    model = tap(unet, TemporalMomentum(0.8, "", 3), layers="*", kinds=["spatial"], asked_by="Momentum")[0]
    with pytest.raises(ChunkError, match="VidToMe needs all frames at once"):
        sample(Node.execute(model)[0], CLIP, steps=1)
