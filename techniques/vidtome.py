"""VidToMe: frames share tokens before they attend (arXiv 2312.10656, §4.1 and §4.2).

A clip is cut into chunks of B frames. Local merging (Eq. 3 to 5) joins the tokens T of a chunk's frames and makes one
random frame in every four the destination; each other token looks for the destination that is most like it,

    c(i) = max_j cos(T_src[i], T_dst[j]),

and the share local_ratio of them that are most alike are merged: they give way to their destination. That goes on until
one whole frame is left. Global merging (Eq. 6, 7) then merges what is left of a chunk with the tokens of the chunks
before it, in the same way, by global_ratio and in a random direction; the result goes on to the next chunk. What is
left attends as one set, and every token gets the output of the one that stands for it.

T is the layer's input. q, k and v are linear in it, token by token, so here they are taken for the tokens that are left
instead of being projected again: the same values.

What the paper leaves open is as in the authors' code: merging replaces a token and does not average; four frames are
the stride; a chunk's global tokens are its own, where they were merged those that they were merged into; the first
chunk has a random length, and the chunks come from either end, both new in every step; every branch matches for itself.
Unlike there, with local_ratio 0 frames stay apart: plain attention. Layers merge at any resolution, the authors' at the
two highest only: ``layers`` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..frames.streams import of_level
from .matching import nearest, taken, unit
from .technique import AttentionCall, Proceed, Stage, Technique, require_own_keys, seen_input

STRIDE = 4
"""There is one destination in so many frames."""


def matched(source: Tensor, others: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``source`` the share ``ratio`` that is most like some of ``others``: which, and into which of these they go;
    then which are left."""
    values, indices = nearest(source, others)
    order = values.sort(descending=True, stable=True).indices
    count = int(len(source) * ratio)
    return order[:count], indices[order[:count]], order[count:]


def merged_frames(x: Tensor, frames: int, ratio: float, draws: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Local merging of ``x`` (frames · tokens, channels), unit vectors: the tokens that are left, and for every token
    the place among them of the one that stands for it. ``draws``: each round's destination."""
    stands_for = torch.arange(len(x), device=x.device)
    tokens = stands_for.clone().unflatten(0, (frames, -1))
    whole, rest = list(range(frames)), stands_for[:0]
    for chosen in draws:
        source = tokens[[frame for place, frame in enumerate(whole) if place % STRIDE != chosen]].flatten()
        whole = whole[chosen::STRIDE]
        others = torch.cat([tokens[whole].flatten(), rest])
        gone, into, left = matched(x[source], x[others], ratio)
        stands_for[source[gone]] = others[into]
        stands_for = stands_for[stands_for]
        rest = torch.cat([rest, source[left]])
    kept = torch.cat([tokens[whole].flatten(), rest])
    place = torch.empty_like(stands_for)
    place[kept] = torch.arange(len(kept), device=x.device)
    return kept, place[stands_for]


@dataclass(frozen=True)
class VidToMe(Technique):
    """The technique. Chunks depend on the clip's length: it does not come in chunks of its own (frames_per_batch)."""

    chunk: int = 4
    local_ratio: float = 0.9
    global_ratio: float = 0.8
    seed: int = 0
    stage = Stage.MERGE
    needs_input = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        if self.local_ratio == 0 or call.frames == 1:
            return proceed(call.q, call.k, call.v)
        require_own_keys(call)
        shown = seen_input(call)

        def by_frame(x: Tensor) -> Tensor:
            return x.unflatten(0, (len(call.branches), call.frames)).movedim(1, -3)

        parts = [by_frame(x) for x in (unit(shown), call.q, call.k, call.v)]
        outputs: list[Tensor] = [shown] * call.frames
        carried: list[Tensor] = []
        spans = self.chunks(call.frames, call.sigma)
        for number, (start, stop) in enumerate(spans):
            joined = [x.narrow(-3, start, stop - start).flatten(-3, -2) for x in parts]
            source = of_level(self.seed, call.sigma, number)
            carries = self.global_ratio > 0 and number < len(spans) - 1
            out, carried = self._attended(joined, stop - start, carried, carries, source, proceed)
            outputs[start:stop] = out.unflatten(-2, (stop - start, -1)).unbind(-3)
        return torch.stack(outputs, dim=1).flatten(0, 1)

    def chunks(self, frames: int, sigma: float) -> list[tuple[int, int]]:
        """The first frame of every chunk and the one after its last, in the order in which they merge."""
        source = of_level(self.seed, sigma)
        first = _draw(source, self.chunk) + 1
        starts = [0, *range(min(first, frames), frames, self.chunk)]
        spans = list(zip(starts, [*starts[1:], frames], strict=True))
        return spans[::-1] if _draw(source, 2) else spans

    def _attended(
        self,
        joined: list[Tensor],
        frames: int,
        carried: list[Tensor],
        carries: bool,
        source: torch.Generator,
        proceed: Proceed,
    ) -> tuple[Tensor, list[Tensor]]:
        """The outputs of a chunk's tokens, and what it carries on: as ``joined``, unit input, q, k and v.

        ``carried``: of the chunk before, empty for the first. ``carries``: another one follows, by global_ratio.
        """
        draws: list[int] = []
        whole = frames
        while whole > 1:  # the same in every branch
            stride = min(STRIDE, whole)
            draws.append(_draw(source, stride))
            whole = len(range(whole)[draws[-1] :: stride])
        found = [merged_frames(x, frames, self.local_ratio, draws) for x in joined[0]]
        kept, place = (torch.stack(each) for each in zip(*found, strict=True))
        local = [taken(x, kept) for x in joined]
        if not carried:
            _, q, k, v = local
            return taken(proceed(q, k, v, merged=True), place), local if carries else []
        gives_way = bool(_draw(source, 2))
        some, others = (local, carried) if gives_way else (carried, local)
        matches = [matched(x, y, self.global_ratio) for x, y in zip(some[0], others[0], strict=True)]
        gone, into, left = (torch.stack(each) for each in zip(*matches, strict=True))
        k, v = (torch.cat([taken(x, left), y], dim=-2) for x, y in zip(some[2:], others[2:], strict=True))
        if not gives_way:  # what is left of the carried ones is only attended to
            return taken(proceed(others[1], k, v, merged=True), place), local
        q = torch.cat([taken(some[1], left), others[1]], dim=-2)
        at = torch.empty_like(kept)  # where each local token is now
        at.scatter_(1, left, torch.arange(left.shape[1], device=at.device).expand_as(left))
        at.scatter_(1, gone, into + left.shape[1])
        out = taken(proceed(q, k, v, merged=True), at.gather(1, place))
        if not carries:
            return out, []
        joined = [torch.cat([taken(some[0], left), others[0]], dim=-2), q, k, v]
        return out, [taken(x, at) for x in joined]


def _draw(source: torch.Generator, count: int) -> int:
    """One of 0 … count − 1."""
    return int(torch.randint(count, (), generator=source))
