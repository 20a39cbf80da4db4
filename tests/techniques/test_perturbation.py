"""Perturbed attention against the maps themselves, in float64."""

import pytest
import torch
from coherence.attention.sites import Site
from coherence.techniques.branches import Copy
from coherence.techniques.choice import SomeHeads
from coherence.techniques.perturbation import (
    IDENTITY,
    UNIFORM,
    CopyPerturbation,
    NoIdentityError,
    Perturbation,
    perturbed,
)
from coherence.techniques.technique import AttentionCall
from comfy.ldm.modules.attention import attention_basic
from hypothesis import given
from hypothesis import strategies as st

HEADS, CHANNELS = 4, 8
SITE = Site("blocks.0", 0, "joint", HEADS, None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_call(rows=3, queries=5, keys=5, split=False, key_heads=HEADS, branches=((0, None),), **facts):
    q = draw(rows, queries, HEADS * CHANNELS, seed=1)
    k, v = (draw(rows, keys, key_heads * CHANNELS, seed=seed) for seed in (2, 3))
    if split:
        q, k, v = (x.unflatten(-1, (-1, CHANNELS)).transpose(1, 2) for x in (q, k, v))
    return AttentionCall(q, k, v, HEADS, SITE, branches, (0,), 1.0, **facts)


def hosts(call):
    """ComfyUI's attention, as the tap has it behind a technique; it notes how many rows it got."""

    def proceed(q, k, v, branches=call.branches):
        proceed.rows.append(len(q))
        gqa = k.shape[1] < HEADS if k.ndim == 4 else k.shape[2] < q.shape[2]
        layout = {"skip_reshape": q.ndim == 4, "skip_output_reshape": not call.heads_joined, "enable_gqa": gqa}
        return attention_basic(q, k, v, HEADS, call.mask, **layout)

    proceed.rows = []
    return proceed


def by_map(call, weights):
    """``weights`` (…, queries, keys) as the map of every head, in the layout of the host's output."""
    *_, v = call.per_head()
    out = weights.expand(*v.shape[:2], *weights.shape[-2:]) @ v
    return out.transpose(1, 2).flatten(2) if call.heads_joined else out


LAYOUTS = [
    {},
    {"split": True},
    {"split": True, "heads_joined": False},
    {"split": True, "key_heads": 2},
    {"key_heads": 2},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keys", [5, 7])
def test_uniform_attention_is_the_mean_over_keys_in_every_layout(layout, keys):
    call = a_call(keys=keys, **layout)
    out = perturbed(call, hosts(call), UNIFORM)
    assert out.shape == hosts(call)(call.q, call.k, call.v).shape
    torch.testing.assert_close(out, by_map(call, torch.full((5, keys), 1 / keys, dtype=torch.float64)))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(alpha=st.floats(0, 1))
def test_a_blend_is_the_blend_of_the_two_maps(layout, alpha):
    call = a_call(**layout)
    weights = alpha * torch.eye(5, dtype=torch.float64) + (1 - alpha) / 5
    torch.testing.assert_close(Perturbation(alpha).attend(call, hosts(call)), by_map(call, weights))


def test_the_uniform_map_sees_what_the_mask_lets_be_seen():
    seen = torch.tensor([[True, True, False, True, False]]).expand(5, 5)
    call = a_call(mask=torch.zeros(5, 5, dtype=torch.float64).masked_fill(~seen, float("-inf")))
    out = perturbed(call, hosts(call), UNIFORM)
    torch.testing.assert_close(out, by_map(call, seen / seen.sum(-1, keepdim=True, dtype=torch.float64)))


def test_where_the_map_is_uniform_already_nothing_changes():
    call = a_call()
    flat = AttentionCall(torch.zeros_like(call.q), call.k, call.v, HEADS, SITE, call.branches, (0,), 1.0)
    torch.testing.assert_close(
        perturbed(flat, hosts(flat), UNIFORM), hosts(flat)(flat.q, flat.k, flat.v), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("alpha", [IDENTITY, 0.5])
def test_without_as_many_keys_as_queries_there_is_no_identity(alpha):
    call = a_call(keys=7)
    with pytest.raises(NoIdentityError, match=r"blocks\.0 has 5 queries and 7 keys"):
        perturbed(call, hosts(call), alpha)


@pytest.mark.parametrize("frames", [1, 2])
def test_copies_are_perturbed_and_no_other_branch_is_touched(frames):
    technique, other = CopyPerturbation(), CopyPerturbation()
    tags = [Copy("c", 0, technique, IDENTITY), Copy("c", 0, other, IDENTITY), "n", Copy("c", 0, technique, UNIFORM)]
    tags += [Copy("c", 0, technique, None), "c"]
    branches = tuple((tag.index if isinstance(tag, Copy) else 0, tag) for tag in tags)
    call = a_call(rows=len(tags) * frames, branches=branches)
    proceed = hosts(call)
    out = technique.attend(call, proceed).chunk(len(tags))
    plain = hosts(call)(call.q, call.k, call.v).chunk(len(tags))
    assert proceed.rows == [4 * frames]
    for position in (1, 2, 4, 5):
        assert torch.equal(out[position], plain[position])
    values = call.v.chunk(len(tags))
    assert torch.equal(out[0], values[0])
    torch.testing.assert_close(out[3], values[3].mean(1, keepdim=True).expand_as(values[3]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [UNIFORM, 0.3, IDENTITY])
def test_chosen_heads_are_perturbed_and_the_others_attend(layout, alpha):
    call, heads = a_call(**layout), frozenset({1, 3})
    out = Perturbation(alpha, SomeHeads({SITE.name: heads})).attend(call, hosts(call))
    plain, whole = hosts(call)(call.q, call.k, call.v), perturbed(call, hosts(call), alpha)
    for head in range(HEADS):
        ours, theirs = (call.per_head_output(x)[:, head] for x in (out, whole if head in heads else plain))
        assert torch.equal(ours, theirs)


def test_a_layer_without_chosen_heads_runs_as_it_is():
    call = a_call()
    out = Perturbation(UNIFORM, SomeHeads({"blocks.1": frozenset({0})})).attend(call, hosts(call))
    assert torch.equal(out, hosts(call)(call.q, call.k, call.v))


def test_without_copies_the_layer_runs_as_it_is():
    call = a_call()
    assert torch.equal(CopyPerturbation().attend(call, hosts(call)), hosts(call)(call.q, call.k, call.v))
