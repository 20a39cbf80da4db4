"""Prompt-to-Prompt (arXiv 2208.01626, §3.2): the target's words apply where the source's did, word by word.

At cross-attention, with M the mapper from the source's tokens to the target's, α 1 where a token of the target is
mapped, and w the weight of its word, the target's map is

    A*_ij = w_j (α_j Σ_k (A_source)_ik M_kj + (1 − α_j) (A_target)_ij)

Refine: an inserted word keeps the target's own map (α = 0). Replace: a word takes the map of the one it replaces, over
all its tokens. Re-weight: w multiplies a word's column. As in the authors' code the rows are not normalised again, and
only the positive prompt's maps are exchanged. No map is computed on its own:

    A* V_t = attention(Q_s, K_s, M (αw V_t)) + attention(Q_t, K_t, (1 − α) w V_t)

The words of both prompts are aligned by a longest common subsequence (the authors' code aligns tokens, and replaces
words only where both prompts have as many). Between common words, those of the target replace those of the source from
the last one backwards, as a noun comes after its adjectives; the rest is inserted or removed. Padding takes from the
padding at the same place, as in the authors' code, so that a removed word's place is shared by what moves up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .branches import rows_of, with_rows
from .pairs import Given, UnpairedBranchError
from .replacement import Replacement
from .technique import AttentionCall, Proceed


class Tokens(Protocol):
    """A prompt's words, the positions of each word's tokens, and the stretches of tokens with an end of their own."""

    @property
    def words(self) -> tuple[str, ...]: ...

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def length(self) -> int: ...

    @property
    def chunks(self) -> Sequence[tuple[int, int]]: ...


@dataclass(frozen=True)
class Words:
    """Which words belong together, by their numbers: ``pairs`` of a source's and a target's, equal or replaced;
    ``removed`` ones of the source, ``inserted`` ones of the target."""

    pairs: tuple[tuple[int, int], ...]
    replaced: tuple[tuple[int, int], ...]
    removed: tuple[int, ...]
    inserted: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Alignment:
    """PROMPT_ALIGNMENT: ``mapper`` is M, (tokens of the source, of the target); ``mapped`` is α and ``weights`` w, of
    the target's tokens; ``edited``: the source's tokens of the edited words. ``source``, ``target``: the text that
    they are of, as encoded."""

    mapper: Tensor
    mapped: Tensor
    weights: Tensor
    edited: tuple[int, ...]
    source: tuple[Tensor, ...] = field(default=(), repr=False)
    target: tuple[Tensor, ...] = field(default=(), repr=False)

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether every token takes the map of the one at its own place, as without an alignment."""
        size = self.mapper.shape
        return size[0] == size[1] and bool((self.weights == 1).all()) and torch.equal(self.mapper, torch.eye(size[0]))

    def of_source(self, v: Tensor, source_keys: int, layer: str) -> Tensor:
        """M (αw V): of the target's values ``v`` those that the source's ``source_keys`` keys carry.

        ComfyUI repeats prompts that share a call until they are equally long. Of copies only the sum counts.
        """
        here, there = (self._copies(keys, n, layer) for keys, n in ((source_keys, 0), (v.shape[-2], 1)))
        mapper = self.mapper * (self.mapped * self.weights)
        return mapper.repeat(here, there).div(there).to(v) @ v

    def of_target(self, v: Tensor, layer: str) -> Tensor:
        """(1 − α) w V."""
        own = (1 - self.mapped.float()) * self.weights
        return own.repeat(self._copies(v.shape[-2], 1, layer)).unsqueeze(-1).to(v) * v

    def _copies(self, keys: int, side: int, layer: str) -> int:
        return copies_in(keys, self.mapper.shape[side], ("source", "target")[side], layer, "disconnect alignment")


def copies_in(keys: int, length: int, prompt: str, layer: str, otherwise: str) -> int:
    """How many copies of a ``prompt`` of ``length`` tokens a layer's ``keys`` are. UnpairedBranchError where that
    cannot be; ``otherwise``: what to do about it but to remove another node."""
    if keys % length:
        raise UnpairedBranchError(
            f"alignment: in attention layer {layer} the {prompt} prompt has {keys} tokens, but AlignPrompts made "
            f"{length} of it, so its words cannot be told. Another node adds tokens to the prompt here. Remove it, or "
            f"{otherwise}."
        )
    return keys // length


def align_words(source: Sequence[str], target: Sequence[str]) -> Words:
    """The words of both prompts by a longest common subsequence; case does not matter."""
    common = _common([each.casefold() for each in source], [each.casefold() for each in target])
    replaced: list[tuple[int, int]] = []
    last = (-1, -1)
    for match in (*common, (len(source), len(target))):
        gaps = (range(last[0] + 1, match[0]), range(last[1] + 1, match[1]))
        replaced += reversed([*zip(reversed(gaps[0]), reversed(gaps[1]), strict=False)])
        last = match
    pairs = sorted([*common, *replaced])
    taken = [{pair[side] for pair in pairs} for side in (0, 1)]
    removed, inserted = (
        tuple(n for n in range(len(words)) if n not in there)
        for words, there in zip((source, target), taken, strict=True)
    )
    return Words(tuple(pairs), tuple(replaced), removed, inserted)


def _common(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """The places of a longest common subsequence; of several the one that begins first."""
    longest = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i in reversed(range(len(source))):
        for j in reversed(range(len(target))):
            same = 1 + longest[i + 1][j + 1] if source[i] == target[j] else 0
            longest[i][j] = max(same, longest[i + 1][j], longest[i][j + 1])
    found, i, j = list[tuple[int, int]](), 0, 0
    while i < len(source) and j < len(target):
        if source[i] == target[j] and longest[i][j] == 1 + longest[i + 1][j + 1]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return found


def edited_words(words: Words, marked: Sequence[int] = ()) -> list[int]:
    """The numbers of the source's words that the edit is about: replaced, removed or ``marked`` ones. If words are only
    inserted, the ones that they stand before, or after where none follows."""
    edited = {source for source, _ in words.replaced} | {*words.removed, *marked}
    if not edited:
        partner = {target: source for source, target in words.pairs}
        for new in words.inserted:
            following = [partner[n] for n in sorted(partner) if n > new]
            before = [partner[n] for n in sorted(partner) if n < new]
            edited |= {*(following[:1] or before[-1:])}
    return sorted(edited)


def align(
    source: Tokens, target: Tokens, words: Words, weights: Sequence[float | None] = (), marked: Sequence[int] = ()
) -> Alignment:
    """The mapper of ``words``. ``weights``: of the target's words, None for 1; ``marked``: words of the source that
    count as edited whatever happens to them."""
    mapper = torch.zeros(source.length, target.length)
    for i, j in words.pairs:
        here, there = source.tokens[i], [token for token in target.tokens[j] if not mapper[:, token].any()]
        if len(here) == len(there):
            for one, other in zip(here, there, strict=True):
                mapper[one, other] = 1
        elif there:
            for one in here:
                mapper[one, there] = 1 / len(there)
    around = _around(source, target)
    shared = Counter(one for one, _ in around)
    for one, other in around:
        mapper[one, other] = 1 / shared[one]
    weight = torch.ones(target.length)
    for tokens, each in zip(target.tokens, weights, strict=False):
        if each is not None:
            weight[list(tokens)] = each
    edited = {token for word in edited_words(words, marked) for token in source.tokens[word]}
    return Alignment(mapper, mapper.any(dim=0), weight, tuple(sorted(edited)))


def _around(source: Tokens, target: Tokens) -> list[tuple[int, int]]:
    """Pairs of the tokens before and after the words of each chunk: beginnings, ends, padding, chat templates."""
    sides = [[_edges(each, start, end) for start, end in each.chunks] for each in (source, target)]
    pairs: set[tuple[int, int]] = set()
    for n in range(max(map(len, sides))):
        (lead, tail), (lead_there, tail_there) = (side[min(n, len(side) - 1)] for side in sides)
        if not lead or not lead_there:  # one has no words here: its beginning is as long as the other's
            size = len(lead) or len(lead_there)
            lead, tail = (lead + tail)[:size], (lead + tail)[size:]
            lead_there, tail_there = (lead_there + tail_there)[:size], (lead_there + tail_there)[size:]
        pairs |= {*zip(lead, lead_there, strict=False)}
        if len(tail) == len(tail_there):
            pairs |= {*zip(tail, tail_there, strict=True)}
        elif tail and tail_there:
            rest, rest_there = tail[1:], tail_there[1:]
            pairs |= {(tail[0], tail_there[0]), *zip(reversed(rest), reversed(rest_there), strict=False)}
            further = rest_there[: max(len(rest_there) - len(rest), 0)]
            pairs |= {((rest or tail)[0], token) for token in further}
    return sorted(pairs)


def _edges(prompt: Tokens, start: int, end: int) -> tuple[list[int], list[int]]:
    """The tokens of a chunk before its first word and after its last."""
    inside = [token for tokens in prompt.tokens for token in tokens if start <= token < end]
    if not inside:
        return [], list(range(start, end))
    return list(range(start, min(inside))), list(range(max(inside) + 1, end))


@dataclass(frozen=True)
class AlignedMaps(Replacement):
    """The technique at cross-attention: ``map`` with an ``alignment``, for every branch that has a source."""

    alignment: Alignment | None = None

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        alignment = self._alignment_at(call)
        if alignment is None or self.pairs.are_apart:
            return super().attend(call, proceed)
        donors = self.pairs.donors(call.branches)
        targets = [n for n, donor in enumerate(donors) if donor != n]
        if not targets:
            return proceed(call.q, call.k, call.v)
        branches = len(call.branches)
        of_target, of_source = call.only(targets), call.only([donors[n] for n in targets])
        weighted = alignment.of_target(of_target.v, call.site.name)
        out = proceed(call.q, call.k, with_rows(call.v, branches, targets, weighted))
        added = _from_source(alignment, of_target, Given(of_source, proceed))
        return with_rows(out, branches, targets, rows_of(out, branches, targets) + added)

    def _from_partner(self, call: AttentionCall, given: Given[AttentionCall], proceed: Proceed) -> Tensor:
        alignment = self._alignment_at(call)
        if alignment is None:
            return super()._from_partner(call, given, proceed)
        own = alignment.of_target(call.v, call.site.name)
        return proceed(call.q, call.k, own) + _from_source(alignment, call, given)

    def _alignment_at(self, call: AttentionCall) -> Alignment | None:
        """None where whole maps are exchanged."""
        alignment = self.alignment
        return alignment if alignment is not None and call.site.reads_text and not alignment.changes_nothing else None


def _from_source(alignment: Alignment, call: AttentionCall, source: Given[AttentionCall]) -> Tensor:
    """attention(Q_s, K_s, M (αw V_t)), by the attention of the source, whose mask it is."""
    assert source.proceed is not None
    values = alignment.of_source(call.v, source.call.k.shape[-2], call.site.name)
    return source.proceed(source.call.q, source.call.k, values, branches=source.call.branches)
