"""What an edit's target takes at some of the heads, beside float64 maps of every head; and by whose entropies."""

from types import SimpleNamespace

import pytest
import torch
from coherence.attention.sites import Site
from coherence.techniques.branches import OfClip
from coherence.techniques.choice import Live, SomeHeads
from coherence.techniques.pairs import Given, Pairs
from coherence.techniques.plug_and_play import PlugAndPlay
from coherence.techniques.replacement import Replacement
from coherence.techniques.technique import AttentionCall

HEADS, CHANNELS, TOKENS, FRAMES = 3, 8, 6, 2
SITE = Site("blocks.1", 1, "joint", HEADS, None)
SOURCE, TARGET, SOURCE_NEGATIVE, TARGET_NEGATIVE = (
    (index, OfClip(f"{index} {clip}", index, clip)) for index in (0, 1) for clip in (0, 1)
)
BRANCHES = (SOURCE_NEGATIVE, TARGET_NEGATIVE, SOURCE, TARGET)
PAIRS = {TARGET[1]: SOURCE[1], TARGET_NEGATIVE[1]: SOURCE_NEGATIVE[1]}
TAKEN = {"map": "qk", "key_value": "kv", "value": "v"}


def call_of(branches, site=SITE, sigma=1.0, joined=True) -> AttentionCall:
    """float64, other values in every branch, sharp maps."""
    generator = torch.Generator().manual_seed(site.order)
    shape = len(BRANCHES), FRAMES, HEADS, TOKENS, CHANNELS
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "qkv")
    places = [BRANCHES.index(branch) for branch in branches]
    q, k, v = (x[places].flatten(0, 1) for x in (3 * q, k, v))
    if joined:
        q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
    return AttentionCall(q, k, v, HEADS, site, tuple(branches), (0, 1), sigma)


def attention(call: AttentionCall, q=None, k=None, v=None):
    """Of every head by its map, (rows, tokens, heads · channels)."""
    given = zip((q, k, v), (call.q, call.k, call.v), strict=True)
    q, k, v = (own if other is None else other for other, own in given)
    q, k, v = (x if x.ndim == 4 else x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.softmax(q @ k.mT / CHANNELS**0.5, dim=-1) @ v
    return out.transpose(1, 2).flatten(2)


def proceed_of(call: AttentionCall):
    return lambda q, k, v, branches=(), merged=False: attention(call, q, k, v)


def expected(taken: str, chosen: dict, branches) -> torch.Tensor:
    """Head by head: the source's tensors where the head is chosen."""
    rows = []
    for branch in branches:
        own = call_of([branch], joined=False)
        donor = next(((i, tag) for i, tag in BRANCHES if tag == PAIRS.get(branch[1])), branch)
        source = call_of([donor], joined=False)
        heads = []
        for head in range(HEADS):
            parts = [(source if head in chosen.get(donor, ()) and name in TAKEN[taken] else own) for name in "qkv"]
            q, k, v = (getattr(part, name)[:, head] for part, name in zip(parts, "qkv", strict=True))
            heads.append(torch.softmax(q @ k.mT / CHANNELS**0.5, dim=-1) @ v)
        rows.append(torch.stack(heads, dim=2).flatten(2))
    return torch.cat(rows)


class ByBranch(SomeHeads):
    """Heads by the branch that is taken from."""

    def heads(self, call, position):
        return frozenset(self.by_site.get(call.branches[position], ()))


CHOSEN = [
    {SOURCE: {0}, SOURCE_NEGATIVE: {1, 2}},
    {SOURCE: {0, 1, 2}, SOURCE_NEGATIVE: {1}},
    {SOURCE: {2}},
    {SOURCE: {0, 1, 2}, SOURCE_NEGATIVE: {0, 1, 2}},
    {},
]


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("chosen", CHOSEN, ids=range(len(CHOSEN)))
def test_chosen_heads_are_the_sources_and_the_others_the_targets_own(taken, chosen):
    for joined in (True, False):
        call = call_of(BRANCHES, joined=joined)
        made = Replacement(taken, PAIRS, choice=ByBranch(chosen)).attend(call, proceed_of(call))
        torch.testing.assert_close(made, expected(taken, chosen, BRANCHES), rtol=0, atol=1e-12)


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("chosen", CHOSEN, ids=range(len(CHOSEN)))
def test_calls_in_step_give_the_same(taken, chosen):
    source, target = ([SOURCE_NEGATIVE, SOURCE], [TARGET_NEGATIVE, TARGET])
    given = Given(call_of(source), proceed_of(call_of(source)))
    partner = SimpleNamespace(is_running=True, take=lambda: given, give=lambda value: None)
    technique = Replacement(taken, PAIRS, partner, choice=ByBranch(chosen))
    made = technique.attend(call_of(target), proceed_of(call_of(target)))
    torch.testing.assert_close(made, expected(taken, chosen, target), rtol=0, atol=1e-12)
    assert torch.equal(technique.attend(given.call, given.proceed), attention(given.call))


def test_plug_and_play_takes_the_same_heads():
    call = call_of(BRANCHES)
    call = AttentionCall(**vars(call) | {"pairs": Pairs(PAIRS)})
    choice = ByBranch(CHOSEN[0])
    made = PlugAndPlay(choice).attend(call, proceed_of(call))
    assert torch.equal(made, Replacement("map", PAIRS, choice=choice).attend(call, proceed_of(call)))


SITES = [Site(f"blocks.{n}", n, "joint", HEADS, None) for n in range(4)]


@pytest.mark.parametrize("apart", [False, True])
def test_the_sources_maps_of_the_step_before_choose_for_each_branch_whatever_the_targets_are(apart):
    first = {SITES[3].name: frozenset(range(HEADS))}
    live = Live(2, False, first)
    partner = SimpleNamespace(is_running=apart, give=lambda value: None)
    technique = Replacement("map", PAIRS, partner, choice=live)
    technique.begin()
    for site in SITES:
        branches = [SOURCE_NEGATIVE, SOURCE] if apart else BRANCHES
        call = call_of(branches, site, sigma=9.0)
        technique.attend(call, proceed_of(call))
        position = list(branches).index(SOURCE)
        assert live.heads(call, position) == first.get(site.name, frozenset())
    for branch in (SOURCE_NEGATIVE, SOURCE):
        entropies = []
        for site in SITES:
            q, k = (getattr(call_of([branch], site, joined=False), name) for name in "qk")
            entropies.append(torch.special.entr(torch.softmax(q @ k.mT / CHANNELS**0.5, -1)).sum(-1).mean())
        lowest = {SITES[n].name for n in torch.stack(entropies).argsort()[:2].tolist()}
        found = {site.name for site in SITES if live.heads(call_of(BRANCHES, site, 5.0), BRANCHES.index(branch))}
        assert found == lowest
