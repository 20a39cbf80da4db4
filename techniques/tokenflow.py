"""TokenFlow: an edit moves as its source does (arXiv 2307.10373, §4).

In every step one random frame of each chunk is a keyframe. The target's keyframes attend to all of them (Eq. 3):

    φ(J_i) = softmax(Q_i [K_1 … K_n]ᵀ / √c) [V_1 … V_n].

Every other frame takes, for each of its tokens p, the keyframes' outputs at the places that are nearest in the source
(Eq. 4 and 5), from the keyframe before it and the one after it,

    γ±[p] = argmin_q D(x_i[p], x_{i±}[q]),        D the cosine distance of the source's tokens x,
    F(i, p) = w φ(J_{i−})[γ−[p]] + (1 − w) φ(J_{i+})[γ+[p]],        w = d₊ / (d₋ + d₊),

with d± its distance from the two. At the ends of a clip, where there is one only, that one counts. x is the layer's
input, normed, as in the authors' code. The source attends as ever.

The authors' code takes the places of the keyframes for the middles of their chunks, uses a chunk's own and the one
before, and puts w through a sigmoid, which leaves every frame between half and three quarters of one keyframe. Here the
places are those that were drawn, and w is the distance itself, so that a keyframe is its own output. The paper has
TokenFlow above an editing method; :mod:`.plug_and_play`, or the edit's own replacement, exchanges the map before frames
flow.

Of a clip in chunks (frames_per_batch) the keyframes run ahead, and every chunk takes from them: the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..frames.streams import of_level
from .branches import rows_of
from .matching import nearest, taken, unit
from .pairs import pairs_in
from .technique import AttentionCall, Proceed, Stage, Technique, require_own_keys, seen_input

_Match = tuple[int, float, Tensor | None]
"""A keyframe that a frame takes from, by place; by how much; the nearest token there of each of its own, None for
itself."""


def neighbours(number: int, keyframes: Sequence[int]) -> list[tuple[int, float]]:
    """Which of ``keyframes``, frames' numbers in order, the frame takes from, by place, and by how much."""
    before = [place for place, each in enumerate(keyframes) if each <= number]
    after = [place for place, each in enumerate(keyframes) if each >= number]
    if not before or not after or keyframes[before[-1]] == number:
        return [(before[-1] if before else after[0], 1.0)]
    first, second = before[-1], after[0]
    share = (keyframes[second] - number) / (keyframes[second] - keyframes[first])
    return [(first, share), (second, 1 - share)]


@dataclass(frozen=True)
class TokenFlow(Technique):
    """The technique, in edits alone. ``chunk``: frames to a keyframe."""

    chunk: int = 8
    seed: int = 0
    frames_per_batch: int = 0
    stage = Stage.MERGE
    supports_chunks = True
    by_frame = True
    needs_input = True
    takes_from_source = True

    def keyframes(self, frames: int, sigma: float) -> list[int]:
        """The places of the keyframes among ``frames``."""
        starts = range(0, frames, self.chunk)
        lengths = [min(self.chunk, frames - start) for start in starts]
        sources = [of_level(self.seed, sigma, number) for number in range(len(starts))]
        return [
            start + int(torch.randint(length, (), generator=source))
            for start, length, source in zip(starts, lengths, sources, strict=True)
        ]

    def ahead(self, frame_indices: tuple[int, ...], sigma: float) -> tuple[int, ...]:
        return tuple(frame_indices[place] for place in self.keyframes(len(frame_indices), sigma))

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        pairs = pairs_in(call, "TokenFlow")
        require_own_keys(call)
        shown = seen_input(call)
        if pairs.are_apart:
            source = pairs.from_partner(call)
            if source is None:
                return proceed(call.q, call.k, call.v)
            return self._flowed(call, list(unit(seen_input(source)).chunk(len(call.branches))), proceed)
        branches = len(call.branches)
        donors = pairs.donors(call.branches)
        others = [place for place, donor in enumerate(donors) if donor == place]
        targets = [place for place, donor in enumerate(donors) if donor != place]
        if not targets:
            return proceed(call.q, call.k, call.v)
        there, here = call.only(others), call.only(targets)
        plain = proceed(there.q, there.k, there.v, branches=there.branches)
        seen = {donor: unit(rows_of(shown, branches, [donor])) for donor in {donors[place] for place in targets}}
        flowed = self._flowed(here, [seen[donors[place]] for place in targets], proceed)
        parts = dict(zip([*others, *targets], [*plain.chunk(len(others)), *flowed.chunk(len(targets))], strict=True))
        return torch.cat([parts[place] for place in range(branches)])

    def _flowed(self, call: AttentionCall, shown: list[Tensor], proceed: Proceed) -> Tensor:
        """The outputs of the target's branches; ``shown``: the unit tokens (frames, tokens, channels) of the source of
        each, one tensor where two have the same."""
        branches, frames = len(call.branches), call.rows_per_branch
        memory = {} if call.memory is None else call.memory
        if call.memory is None or call.runs_ahead:
            places = [*range(frames)] if call.runs_ahead else self.keyframes(frames, call.sigma)
            memory["numbers"] = torch.tensor([call.frame_indices[place] for place in places])
            memory["shown"] = torch.stack([x[places] for x in shown])
            memory["out"] = self._keyframes_output(call, places, proceed)
        numbers, out = memory["numbers"].tolist(), memory["out"]
        sources = {id(x): (x, keys) for x, keys in zip(shown, memory["shown"], strict=True)}  # branches may share one
        found = {source: _matches(call, *tokens, numbers) for source, tokens in sources.items()}
        return torch.cat([_joined(out[n], near) for n in range(branches) for near in found[id(shown[n])]])

    def _keyframes_output(self, call: AttentionCall, places: list[int], proceed: Proceed) -> Tensor:
        """(branches, keyframes, …, tokens, channels): they attend as one row, so keys are there once."""
        branches = len(call.branches)

        def joined(x: Tensor) -> Tensor:
            return x.unflatten(0, (branches, -1))[:, places].movedim(1, -3).flatten(-3, -2)

        out = proceed(joined(call.q), joined(call.k), joined(call.v), merged=True)
        return out.unflatten(-2, (len(places), -1)).movedim(-3, 1)


def _matches(call: AttentionCall, shown: Tensor, keys: Tensor, numbers: list[int]) -> list[list[_Match]]:
    """Of every frame what it takes from."""
    return [
        [
            (place, share, None if numbers[place] == number else nearest(shown[frame], keys[place])[1])
            for place, share in neighbours(number, numbers)
        ]
        for frame, number in enumerate(call.frame_indices)
    ]


def _joined(out: Tensor, matches: Sequence[_Match]) -> Tensor:
    """Of a frame, as (1, …), what it takes of the keyframes' outputs ``out``."""
    parts = []
    for place, _, where in matches:
        keyframe = out[place : place + 1]
        parts.append(keyframe if where is None else taken(keyframe, where[None]))
    return parts[0] if len(parts) == 1 else parts[0] * matches[0][1] + parts[1] * matches[1][1]
