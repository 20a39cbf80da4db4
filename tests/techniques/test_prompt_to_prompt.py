"""Prompt-to-Prompt's alignment of words, and its maps against ones that are multiplied out, in float64."""

from uuid import uuid4

import pytest
import torch
import torch.nn.functional as F
from coherence.attention.sites import Site
from coherence.techniques.prompt_to_prompt import AlignedMaps, align, align_words, edited_words
from coherence.techniques.replacement import UnpairedBranchError
from coherence.techniques.technique import AttentionCall
from hypothesis import given, settings
from hypothesis import strategies as st
from word_edits import told

SITE = Site("middle.0.attn2", 0, "cross", 1, None)
TEXTS = st.lists(st.sampled_from(["a", "red", "big", "star", "pentagon"]), max_size=6)


def words(source: str, target: str):
    return align_words(source.split(), target.split())


def test_words_between_common_ones_replace_each_other_from_the_last():
    found = words("a photo of a cat on grass", "a Photo of a fluffy dog on the grass")
    assert found.pairs == ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (5, 6), (6, 8))
    assert (found.replaced, found.removed, found.inserted) == (((4, 5),), (), (4, 7))
    found = words("a very big red cat", "a blue cat")
    assert (found.replaced, found.removed, found.inserted) == (((3, 1),), (1, 2), ())


@given(TEXTS, TEXTS)
@settings(deadline=None)
def test_every_word_is_paired_once_inserted_or_removed_and_order_is_kept(source, target):
    found = align_words(source, target)
    sources, targets = ([pair[side] for pair in found.pairs] for side in (0, 1))
    assert sorted([*sources, *found.removed]) == list(range(len(source)))
    assert sorted([*targets, *found.inserted]) == list(range(len(target)))
    assert sources == sorted(sources)
    assert targets == sorted(targets)


def test_where_the_edit_is():
    assert edited_words(words("a red cat", "a blue cat")) == [1]
    assert edited_words(words("a big cat sits", "a cat sits")) == [1]
    assert edited_words(words("a cat sits", "a black cat sits")) == [1]  # what the new word stands before
    assert edited_words(words("a cat sits", "a cat sits down")) == [2]
    assert edited_words(words("a cat sits", "a cat sits")) == []
    assert edited_words(words("a cat sits", "a cat sits"), [1]) == [1]


def mapper_of(source: str, target: str, length: int = 10, other: int = 10, **how):
    return align(told(source, length), told(target, other), words(source, target), **how)


def test_a_replaced_word_spreads_over_its_tokens():
    """ "pentagon" has two tokens, "star" has one."""
    mapper = mapper_of("a star on", "a pentagon on").mapper
    expected = torch.zeros(10, 10)
    for one, other, share in ((0, 0, 1), (1, 1, 1), (2, 2, 0.5), (2, 3, 0.5), (3, 4, 1), (4, 5, 1)):
        expected[one, other] = share  # the beginning, words, the end
    for padding in range(6, 10):
        expected[padding, padding] = 1
    assert torch.equal(mapper, expected)
    back = mapper_of("a pentagon on", "a star on").mapper
    assert torch.equal(back[[2, 3], 2], torch.ones(2))
    # one place of padding is left for the two that moved up
    assert back[6, 5] == back[6, 6] == 0.5


def test_an_inserted_word_keeps_its_own_map_and_moves_nobodys():
    alignment = mapper_of("a star on", "a red star on")
    assert (~alignment.mapped).nonzero().flatten().tolist() == [2]
    assert [alignment.mapper[:, token].nonzero().flatten().tolist() for token in (1, 3, 4)] == [[1], [2], [3]]


def test_equal_words_change_nothing():
    assert mapper_of("a red star", "a red star").changes_nothing
    assert not mapper_of("a red star", "a red star", weights=[None, 2.0, None]).changes_nothing
    assert not mapper_of("a red star", "a star red").changes_nothing


@pytest.mark.parametrize(("length", "other"), [(10, 10), (10, 20), (20, 10), (10, 13)])
def test_no_part_of_a_map_is_given_away_twice(length, other):
    mapper = mapper_of("a star on the wall", "a pentagon on a wall", length, other).mapper
    assert mapper.sum(dim=1).max() <= 1 + 1e-6
    assert mapper.min() >= 0


def test_weights_are_those_of_all_tokens_of_a_word():
    alignment = mapper_of("a star", "a red pentagon", weights=[None, 0.5, 3.0])
    assert alignment.weights.tolist() == [1, 1, 0.5, 3, 3, 1, 1, 1, 1, 1]


def maps(q, k):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("target", ["a very red pentagon", "a red star", "red star a"])
def test_the_target_gets_the_papers_map(target, copies):
    """``copies``: as ComfyUI repeats a prompt beside a longer one."""
    alignment = mapper_of("a red star", target, weights=[None, 2.5])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(3, n, 8, generator=generator, dtype=torch.float64) for n in (6, 10, 10))
    k, v = (x.repeat(1, copies, 1) for x in (k, v))
    source, target_tag, other = uuid4(), uuid4(), uuid4()
    branches = ((0, source), (0, target_tag), (1, other))
    technique = AlignedMaps("map", {target_tag: source}, None, alignment)
    call = AttentionCall(q, k, v, 1, SITE, branches, (0,), 1.0)
    out = technique.attend(call, lambda q, k, v, branches=branches: F.scaled_dot_product_attention(q, k, v))
    of_source, own = (maps(q[n], k[n]).unflatten(-1, (copies, 10)).sum(1) for n in (0, 1))
    expected = torch.zeros(6, 10, dtype=torch.float64)
    for j in range(10):
        mapped = sum(alignment.mapper[i, j].double() * of_source[:, i] for i in range(10))
        expected[:, j] = alignment.weights[j] * (mapped if alignment.mapped[j] else own[:, j])
    torch.testing.assert_close(out[1], expected @ v[1, :10], atol=1e-6, rtol=0)
    plain = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out[[0, 2]], plain[[0, 2]], atol=1e-12, rtol=0)


def test_other_tokens_than_those_aligned_are_refused_with_the_numbers():
    alignment = mapper_of("a red star", "a blue star", weights=[2.0])
    tags = uuid4(), uuid4()
    call = AttentionCall(*(torch.randn(2, 13, 8) for _ in range(3)), 1, SITE, ((0, tags[0]), (0, tags[1])), (0,), 1.0)
    technique = AlignedMaps("map", {tags[1]: tags[0]}, None, alignment)
    with pytest.raises(UnpairedBranchError, match="13 tokens, but AlignPrompts made 10"):
        technique.attend(call, lambda q, k, v, branches=(): F.scaled_dot_product_attention(q, k, v))
