"""A target clip attends as its source does: IE-Adapt's editing (§4.2, Algorithm 1), and what it is compared with.

Source and target are branches of one model call, so what the target takes is already there: its rows of q, k or v are
exchanged for the source's before the layer attends.

    map         softmax(Q_s K_sᵀ / √c) V_t    (IE-Adapt; at cross-attention, Prompt-to-Prompt: arXiv 2208.01626)
    key_value   softmax(Q_t K_sᵀ / √c) V_s    (MasaCtrl, arXiv 2304.08465)
    value       softmax(Q_t K_tᵀ / √c) V_s

No map is ever computed on its own, and nothing outlives the layer. Where single heads are replaced, the others attend
for themselves; which ones, the entropies of the source's maps say (:mod:`.choice`), as it is these that are handed on.

Prompts that differ in length are in calls of their own, which go through the layers in step. Where text and picture
attend together, only the picture's part can then be exchanged; the target's text stays. In ``map`` a picture's query
scores the picture's keys as the source's does, and the text's keys by itself, in one softmax:

    softmax([Q_t K_tᵀ(text), Q_s K_sᵀ(picture)] / √c) V_t
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .branches import rows_of, with_rows
from .choice import ALL_HEADS, NONE, Choice, Heads, with_heads
from .pairs import Given, Pairs, Partner, UnpairedBranchError
from .technique import AttentionCall, Proceed, Stage, Technique

Taken = Literal["map", "key_value", "value"]
_FROM_SOURCE: dict[Taken, tuple[bool, bool, bool]] = {
    "map": (True, True, False),
    "key_value": (False, True, True),
    "value": (False, False, True),
}
"""Which of q, k and v the target takes from the source."""


@dataclass(frozen=True)
class Replacement(Technique):
    """The technique: every branch whose uuid is in ``source_of`` takes from the branch with the uuid found there: one
    of the same call or, while ``partner`` runs, of the source's. None there: from none. It takes the heads that
    ``choice`` has for the branch that it takes from."""

    taken: Taken
    source_of: MutableMapping[Any, Any]
    partner: Partner | None = None
    choice: Choice = field(default=ALL_HEADS, kw_only=True)
    stage = Stage.MAPS
    supports_chunks = True
    by_frame = True

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.source_of, self.partner)

    def begin(self) -> None:
        self.choice.begin()

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        self._see(call)
        if self.pairs.are_apart:
            given = self.pairs.given(call, proceed)
            if given is None:
                return proceed(call.q, call.k, call.v)
            chosen = [self.choice.heads(given.call, n) for n in range(len(call.branches))]
            if not any(chosen):
                return proceed(call.q, call.k, call.v)
            return _at_heads(call, self._from_partner(call, given, proceed), chosen, proceed)
        donors = self.pairs.donors(call.branches)
        chosen = [NONE if donor == n else self.choice.heads(call, donor) for n, donor in enumerate(donors)]
        donors = [donor if chosen[n] else n for n, donor in enumerate(donors)]
        if donors == list(range(len(donors))):
            return proceed(call.q, call.k, call.v)
        replaced = self._replaced(call, donors, proceed)
        all_heads = frozenset(range(call.heads))  # of those that take from none, nothing was replaced
        return _at_heads(call, replaced, [heads or all_heads for heads in chosen], proceed)

    def _see(self, call: AttentionCall) -> None:
        """Of the sources' maps, what the next step's choice is made by."""
        sources = [n for n, (_, tag) in enumerate(call.branches) if tag not in self.source_of]
        if sources:
            self.choice.see(call if len(sources) == len(call.branches) else call.only(sources))

    def _replaced(self, call: AttentionCall, donors: Sequence[int], proceed: Proceed) -> Tensor:
        """The output where every branch takes from the one at its place in ``donors``, with all heads."""
        branches = len(call.branches)
        query, key, value = _FROM_SOURCE[self.taken]
        q, k, v = (
            rows_of(x, branches, donors) if taken else x
            for x, taken in ((call.q, query), (call.k, key), (call.v, value))
        )
        if key and call.mask is not None:  # which of the source's keys are seen, the source's mask says
            return proceed(q, k, v, branches=tuple(call.branches[donor] for donor in donors))
        return proceed(q, k, v)

    def _from_partner(self, call: AttentionCall, given: Given[AttentionCall], proceed: Proceed) -> Tensor:
        source = given.call
        if _are_alike(call, source):
            query, key, value = _FROM_SOURCE[self.taken]
            return proceed(source.q if query else call.q, source.k if key else call.k, source.v if value else call.v)
        k, v = (source.of_frame(x) for x in (source.k, source.v))
        if call.site.kind == "cross" or call.q.shape[-2] != call.k.shape[-2] or call.of_frame(call.k).shape != k.shape:
            raise UnpairedBranchError(
                f"In attention layer {call.site.name} source and target differ in their tokens: {source.k.shape[-2]} "
                f"and {call.k.shape[-2]}. cross_map needs prompts with the same number of tokens, or an alignment. "
                "With another choice, give both clips the same areas, step ranges and reference pictures, or leave "
                "that layer out."
            )
        if self.taken == "key_value":
            return proceed(call.q, call.with_frame(call.k, k), call.with_frame(call.v, v))
        if self.taken == "value":
            return proceed(call.q, call.k, call.with_frame(call.v, v))
        return _with_pictures_map(call, source, proceed)


def _at_heads(call: AttentionCall, replaced: Tensor, chosen: Sequence[Heads], proceed: Proceed) -> Tensor:
    """``replaced`` at the chosen heads of each branch; with the others it attends for itself."""
    places = [n for n, heads in enumerate(chosen) if len(heads) < call.heads]
    if not places:
        return replaced
    branches = len(call.branches)
    here = call if len(places) == branches else call.only(places)
    own = proceed(here.q, here.k, here.v, branches=here.branches)
    pairs = zip(places, own.chunk(len(places)), rows_of(replaced, branches, places).chunk(len(places)), strict=True)
    rows = torch.cat([with_heads(call, plain, taken, chosen[n]) for n, plain, taken in pairs])
    return with_rows(replaced, branches, places, rows)


def _are_alike(call: AttentionCall, source: AttentionCall) -> bool:
    """Whether whole rows can be exchanged: the same tokens, and the same of them seen."""
    if (call.q.shape, call.k.shape, call.leading_tokens) != (source.q.shape, source.k.shape, source.leading_tokens):
        return False
    if call.mask is None or source.mask is None:
        return call.mask is source.mask
    return call.mask.shape == source.mask.shape and torch.equal(call.mask, source.mask)


def _with_pictures_map(call: AttentionCall, source: AttentionCall, proceed: Proceed) -> Tensor:
    """``map`` of the picture alone, in one attention with twice the channels: a query [Q_s, Q_t] scores the picture's
    keys [K_s, 0] and the text's [0, K_t]."""
    channels = call.q.shape[-1] // call.heads if call.q.ndim == 3 else call.q.shape[-1]

    def doubled(one: Tensor, other: Tensor) -> Tensor:
        if one.ndim == 4:
            return torch.cat([one, other], dim=-1)
        return torch.cat([x.unflatten(-1, (-1, channels)) for x in (one, other)], dim=-1).flatten(-2)

    def queries(x: Tensor) -> Tensor:
        return x if call.mask is not None else call.of_frame(x)  # a mask may have a row for each

    picture = source.of_frame(source.k)
    q = doubled(queries(call.with_frame(torch.zeros_like(call.q), source.of_frame(source.q))), queries(call.q))
    if call.scale is None:
        q = q * 2**0.5  # of twice the channels the host takes the root
    k = doubled(call.with_frame(torch.zeros_like(call.k), picture), call.with_frame(call.k, torch.zeros_like(picture)))
    out = proceed(q, k, doubled(call.v, torch.zeros_like(call.v)))
    out = out[..., :channels] if out.ndim == 4 else out.unflatten(-1, (call.heads, -1))[..., :channels].flatten(-2)
    if call.mask is not None:
        return call.with_frame(proceed(call.q, call.k, call.v), call.of_frame(out))
    lead, trail = call.leading_tokens or 0, call.trailing_tokens
    if not lead and not trail:
        return out
    end = call.q.shape[-2] - trail
    text = proceed(torch.cat([call.q[..., :lead, :], call.q[..., end:, :]], dim=-2), call.k, call.v)
    return torch.cat([text[..., :lead, :], out, text[..., lead:, :]], dim=-2)
