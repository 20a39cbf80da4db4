"""CrossFrameAttention's ``all`` and ``random`` against their formulas in float64, in small models under a sampler."""

from __future__ import annotations

import pytest
import torch
from coherence.attention.chunks import ChunkError
from coherence.demo.model import load_model
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.techniques.cross_frame import AnyFrames, random_others
from coherence.techniques.technique import FurtherKeysError, Technique
from momentum_runs import clip, run
from picture_runs import momentum, patched
from tiny_models import FAMILIES, sample
from watching import demo_of, difference

FRAMES = 4
SEED = 5


class Reference(Technique):
    """Every frame of every branch by itself: softmax over the chosen frames' keys, in float64."""

    def __init__(self, chosen):
        self.chosen = chosen

    def attend(self, call, proceed):
        q, k, v = (x.double() for x in call.per_head())
        rows = []
        for row in range(len(q)):
            branch, frame = divmod(row, call.frames)
            others = [branch * call.frames + other for other in self.chosen(call.frames, frame, call.sigma)]

            def keys(x, row=row, others=others):
                text, end = call.leading_tokens or 0, x.shape[-2] - call.trailing_tokens
                return torch.cat([x[row, :, :text], *(call.of_frame(x)[i] for i in others), x[row, :, end:]], dim=-2)

            scores = q[row] @ keys(k).transpose(-1, -2) * (call.scale or q.shape[-1] ** -0.5)
            rows.append(scores.softmax(-1) @ keys(v))
        out = torch.stack(rows).to(call.q.dtype)
        return out.transpose(1, 2).flatten(2) if call.heads_joined else out


CHOSEN = {
    "all": lambda frames, frame, sigma: range(frames),
    "random": lambda frames, frame, sigma: [random_others(frames, SEED, sigma)[frame]],
}


@pytest.fixture(scope="module", params=["demo", "flux"])
def subject(request, tiny_models):
    if request.param == "demo":
        return load_model(), demo_of(FRAMES)
    return tiny_models.load(request.param), FAMILIES[request.param]


@pytest.mark.parametrize("keys", CHOSEN)
def test_it_is_its_formula_in_float64(subject, keys):
    model, family = subject
    ours = sample(CrossFrameAttention.execute(model, keys, seed=SEED)[0], family, steps=2, cfg=3.0)
    theirs = sample(patched(model, Reference(CHOSEN[keys])), family, steps=2, cfg=3.0)
    assert difference(ours, theirs) <= 1e-4
    assert difference(ours, sample(model, family, steps=2, cfg=3.0)) > 0.005


@pytest.mark.parametrize("keys", CHOSEN)
def test_chunks_of_frames_are_refused(subject, keys):
    model, family = subject
    with pytest.raises(ChunkError, match="CrossFrameAttention needs all frames at once"):
        sample(CrossFrameAttention.execute(momentum(model, frames_per_batch=2), keys)[0], family, steps=1)


@pytest.mark.parametrize("keys", CHOSEN)
def test_one_frame_attends_to_itself(keys):
    q, k, v = clip(2, branches=2)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(run(AnyFrames(keys), q, k, v, branches=2, frame_indices=(0,)), plain)


@pytest.mark.parametrize("keys", CHOSEN)
def test_branches_apart_are_the_branches_together(keys):
    q, k, v = clip(5, branches=2)
    together = run(AnyFrames(keys, SEED), q, k, v, branches=2)
    apart = [run(AnyFrames(keys, SEED), *(x.chunk(2)[i] for x in (q, k, v)), branches=1) for i in range(2)]
    assert (torch.cat(apart) - together).abs().max() <= 1e-12


def test_all_does_not_depend_on_the_frames_order():
    q, k, v = clip(5, branches=1)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = run(AnyFrames("all"), *(x[order] for x in (q, k, v)), branches=1)
    assert (shuffled - run(AnyFrames("all"), q, k, v, branches=1)[order]).abs().max() <= 1e-12


def test_all_refuses_keys_that_another_node_has_added():
    q, k, v = clip(3, branches=1)
    with pytest.raises(FurtherKeysError, match="another node already adds keys"):
        run(AnyFrames("all"), q, torch.cat([k, k], dim=1), torch.cat([v, v], dim=1), branches=1)


def test_random_draws_another_frame_each_evenly_and_anew_at_every_level():
    counts = torch.zeros(4, 4)
    for level in range(900):
        for frame, other in enumerate(random_others(4, 0, 1 + level / 100)):
            counts[frame, other] += 1
    assert counts.diagonal().sum() == 0
    assert (counts[~torch.eye(4, dtype=torch.bool)] - 300).abs().max() < 75  # five standard deviations
    assert random_others(16, 0, 7.25) == random_others(16, 0, 7.2500001) != random_others(16, 1, 7.25)
