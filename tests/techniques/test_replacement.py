"""Attention replacement on tensors, against maps that are computed and multiplied out, in float64."""

from uuid import uuid4

import pytest
import torch
import torch.nn.functional as F
from coherence.attention.sites import Site
from coherence.techniques.replacement import Replacement, UnpairedBranchError
from coherence.techniques.technique import AttentionCall
from hypothesis import given, settings
from hypothesis import strategies as st

TAKEN = ("map", "key_value", "value")
LAYOUTS = {"tokens × channels": (5, 8), "heads × tokens × channels": (2, 5, 4)}


def sharp(rows: int, layout: str, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v whose maps differ from row to row: a mistake must show."""
    generator = torch.Generator().manual_seed(seed)
    return [4 * torch.randn(rows, *LAYOUTS[layout], generator=generator, dtype=torch.float64) for _ in range(3)]


def call_of(q, k, v, uuids, mask=None) -> AttentionCall:
    branches = tuple((index, uuid) for index, uuid in enumerate(uuids))
    heads = q.shape[1] if q.ndim == 4 else 1
    return AttentionCall(q, k, v, heads, Site("middle.0.attn1", 0, "spatial", heads, None), branches, (0,), 1.0, mask)


def by_the_map(taken: str, source: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """What the target's rows become, with the map in memory."""
    (qs, ks, vs), (qt, kt, vt) = source, target
    q, k, v = {"map": (qs, ks, vt), "key_value": (qt, ks, vs), "value": (qt, kt, vs)}[taken]
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v


@settings(deadline=None)
@given(st.sampled_from(TAKEN), st.sampled_from(sorted(LAYOUTS)), st.permutations(range(4)), st.integers(1, 3))
def test_the_target_gets_what_its_sources_map_gives_and_the_source_what_it_had(taken, layout, order, rows):
    source, target, source_negative, target_negative = uuids = [uuid4() for _ in range(4)]
    placed = [uuids[place] for place in order]
    q, k, v = sharp(4 * rows, layout)
    technique = Replacement(taken, {target: source, target_negative: source_negative})
    out = technique.attend(call_of(q, k, v, placed), F.scaled_dot_product_attention)

    def rows_of(uuid) -> list[torch.Tensor]:
        return [x.chunk(4)[placed.index(uuid)] for x in (q, k, v)]

    outs = dict(zip(placed, out.chunk(4), strict=True))
    for of_target, of_source in technique.source_of.items():
        expected = by_the_map(taken, rows_of(of_source), rows_of(of_target))
        torch.testing.assert_close(outs[of_target], expected, atol=1e-12, rtol=0)
        untouched = F.scaled_dot_product_attention(*rows_of(of_source))
        torch.testing.assert_close(outs[of_source], untouched, atol=1e-12, rtol=0)


@pytest.mark.parametrize("taken", TAKEN)
def test_two_targets_may_take_from_one_source(taken):
    source, target, negative = (uuid4() for _ in range(3))
    q, k, v = sharp(3, "tokens × channels")
    technique = Replacement(taken, {target: source, negative: source})
    out = technique.attend(call_of(q, k, v, [source, target, negative]), F.scaled_dot_product_attention)
    for row in (1, 2):
        expected = by_the_map(taken, [x[:1] for x in (q, k, v)], [x[row : row + 1] for x in (q, k, v)])
        torch.testing.assert_close(out[row : row + 1], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("taken", TAKEN)
def test_equal_branches_stay_equal_bitwise(taken):
    uuids = [uuid4(), uuid4()]
    q, k, v = (torch.cat([x, x]) for x in sharp(2, "tokens × channels"))
    out = Replacement(taken, dict([uuids[::-1]])).attend(call_of(q, k, v, uuids), F.scaled_dot_product_attention)
    assert torch.equal(*out.chunk(2))
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


def test_a_call_without_targets_is_left_alone_and_copies_nothing():
    q, k, v = sharp(2, "tokens × channels")
    seen = []
    call = call_of(q, k, v, [uuid4(), None])
    Replacement("map", {uuid4(): uuid4()}).attend(call, lambda *qkv: seen.extend(qkv))
    assert all(a is b for a, b in zip(seen, (q, k, v), strict=True))


def test_a_target_without_its_source_is_refused_with_a_cure():
    target, source = uuid4(), uuid4()
    call = call_of(*sharp(2, "tokens × channels"), [target, uuid4()])
    with pytest.raises(UnpairedBranchError, match="the same areas, step ranges"):
        Replacement("map", {target: source}).attend(call, F.scaled_dot_product_attention)


@pytest.mark.parametrize(("taken", "masked_as"), [("map", 0), ("key_value", 0), ("value", 1)])
def test_the_mask_goes_with_the_keys(taken, masked_as):
    uuids = source, target = uuid4(), uuid4()
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    mask[0, :, 3:], mask[1, :, :2] = False, False
    call = call_of(*sharp(2, "tokens × channels"), uuids, mask)

    def attention(q, k, v, branches=call.branches):
        return F.scaled_dot_product_attention(q, k, v, mask[[call.branches.index(branch) for branch in branches]])

    out = Replacement(taken, {target: source}).attend(call, attention)
    (qs, ks, vs), (qt, kt, vt) = ([x[row] for x in (call.q, call.k, call.v)] for row in (0, 1))
    q, k, v = {"map": (qs, ks, vt), "key_value": (qt, ks, vs), "value": (qt, kt, vs)}[taken]
    expected = F.scaled_dot_product_attention(q, k, v, mask[masked_as])
    torch.testing.assert_close(out[1], expected, atol=1e-12, rtol=0)
