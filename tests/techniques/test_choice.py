"""Layers and heads that are ranked anew at each step, beside the entropies of the maps themselves."""

from dataclasses import replace

import pytest
import torch
from coherence.attention.sites import Site
from coherence.techniques.branches import Copy
from coherence.techniques.choice import Live
from coherence.techniques.technique import AttentionCall

HEADS, CHANNELS, TOKENS = 3, 8, 6
SITES = [Site(f"blocks.{n}", n, "joint", HEADS, None) for n in range(4)]
ALL = frozenset(range(HEADS))
FIRST = {"blocks.3": ALL}
POSITIVE, NEGATIVE = (0, "c"), (1, "n")


def call_at(site: Site, sigma: float, branches=(NEGATIVE, POSITIVE), rows: int = 2, part: slice = slice(None)):
    """Maps from even to sharp, other ones at each site, step, branch and head."""
    generator = torch.Generator().manual_seed(1000 * site.order + round(10 * sigma))
    sharp = torch.rand(2, 1, HEADS, 1, generator=generator, dtype=torch.float64) * 6
    q, k, v = (torch.randn(2, rows, HEADS, TOKENS, CHANNELS, generator=generator, dtype=torch.float64) for _ in "qkv")
    q = q * sharp[..., None]
    of = {NEGATIVE: 0, POSITIVE: 1}
    chosen = [of[(tag.index, tag.of) if isinstance(tag, Copy) else (index, tag)] for index, tag in branches]
    q, k, v = (x[chosen][:, part].flatten(0, 1).transpose(1, 2).flatten(2) for x in (q, k, v))
    return AttentionCall(q, k, v, HEADS, site, tuple(branches), (0,), sigma)


def entropies(sigma: float, branch) -> torch.Tensor:
    """(sites, heads), from the maps."""
    rows = []
    for site in SITES:
        q, k, _ = call_at(site, sigma, (branch,)).per_head()
        p = torch.softmax(q @ k.mT / CHANNELS**0.5, dim=-1)
        rows.append(torch.special.entr(p).sum(-1).mean((0, 2)))
    return torch.stack(rows)


def step(live: Live, sigma: float, **how) -> None:
    for site in SITES:
        live.see(call_at(site, sigma, **how))


def chosen(live: Live, sigma: float, branches=(NEGATIVE, POSITIVE)) -> list[dict]:
    found = [
        {site.name: live.heads(call_at(site, sigma, branches), position) for site in SITES}
        for position in range(len(branches))
    ]
    return [{name: heads for name, heads in each.items() if heads} for each in found]


@pytest.mark.parametrize("highest", [True, False])
def test_a_step_has_the_layers_that_rank_first_at_the_step_before_for_each_branch(highest):
    live = Live(2, highest, FIRST)
    live.begin()
    step(live, 9.0)
    assert chosen(live, 9.0) == [FIRST, FIRST]
    for before, now in ((9.0, 5.0), (5.0, 2.0)):
        step(live, now)
        for found, branch in zip(chosen(live, now), (NEGATIVE, POSITIVE), strict=True):
            best = entropies(before, branch).mean(1).argsort(descending=highest)[:2].tolist()
            assert found == {SITES[n].name: ALL for n in best}


def test_heads_rank_one_by_one():
    live = Live(4, True, FIRST, per_head=True)
    step(live, 9.0)
    for found, branch in zip(chosen(live, 5.0), (NEGATIVE, POSITIVE), strict=True):
        best = entropies(9.0, branch).flatten().argsort(descending=True)[:4].tolist()
        expected: dict = {}
        for n in best:
            expected[SITES[n // HEADS].name] = expected.get(SITES[n // HEADS].name, frozenset()) | {n % HEADS}
        assert found == expected


def test_branches_in_calls_of_their_own_and_chunks_of_frames_rank_alike():
    whole, parts = Live(2, True, FIRST), Live(2, True, FIRST)
    step(whole, 9.0)
    for branch in (POSITIVE, NEGATIVE):
        for part in (slice(0, 1), slice(1, 2)):
            step(parts, 9.0, branches=(branch,), part=part)
    assert chosen(parts, 5.0) == chosen(whole, 5.0)


def test_frames_that_run_ahead_of_the_chunks_count_once():
    whole, parts = Live(2, True, FIRST), Live(2, True, FIRST)
    step(whole, 9.0)
    for site in SITES:
        parts.see(replace(call_at(site, 5.0, rows=40), sigma=9.0, runs_ahead=True))
    step(parts, 9.0)
    assert chosen(parts, 2.0) == chosen(whole, 2.0)


def test_copies_are_not_measured_and_have_their_originals_layers():
    copied, plain = Live(1, True, FIRST), Live(1, True, FIRST)
    branches = (NEGATIVE, POSITIVE, (0, Copy("c", 0, copied, 1.0)))
    for sigma in (9.0, 5.0):
        step(copied, sigma, branches=branches)
        step(plain, sigma)
    assert chosen(copied, 5.0, branches)[:2] == chosen(plain, 5.0)
    assert chosen(copied, 5.0, branches)[2] == chosen(plain, 5.0)[1]


def test_a_new_run_begins_with_the_first_choice():
    live = Live(1, True, FIRST)
    step(live, 9.0)
    assert chosen(live, 5.0) != [FIRST, FIRST]
    live.begin()
    assert chosen(live, 5.0) == [FIRST, FIRST]


def test_copies_part_no_later_than_at_a_chosen_site():
    live = Live(1, True, FIRST)
    names = frozenset(site.name for site in SITES)
    assert live.acts_at(names, 9.0) == {"blocks.3"}
    step(live, 9.0)
    ahead = live.acts_at(names, 5.0)
    assert {name for each in chosen(live, 5.0) for name in each} <= ahead < names
