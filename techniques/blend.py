"""FateZero's attention blending (arXiv 2303.09535, §3.2): the source's map, but where the edit is, the target's own.

At self-attention, for every query,

    out = M · A_target V_target + (1 − M) · A_source V_target

M is 1 where the source looks at the edited words: its cross maps of them, summed over their tokens, averaged over heads
and over the layers of at most 32² tokens a frame, divided by each frame's largest value, above 0.3. It is measured in
every step, before source and target attend. Two calls of the attention, and no map is kept; of a step only M's frames
are. Where every layer has more tokens, those with the fewest are measured.

The authors' code edits the positive branch alone; here the negatives blend too, as in the other replacements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .branches import rows_of, with_rows
from .pairs import Given, UnpairedBranchError
from .prompt_to_prompt import copies_in
from .replacement import Replacement
from .technique import AttentionCall, Proceed, Stage, Technique, require_whole_frames

LARGEST = 32 * 32
THRESHOLD = 0.3


@dataclass(eq=False)
class WordMasks(Technique):
    """Looks at cross-attention, while it :meth:`measures`, and changes nothing. ``tokens``: of the edited words among
    the source's ``length``."""

    tokens: tuple[int, ...]
    length: int
    stage = Stage.LOOK
    supports_chunks = True
    by_frame = True

    _measures: bool = field(default=False, init=False)
    _seen: dict[tuple[int, ...], list[Tensor]] = field(default_factory=dict, init=False)
    """Of each layer the weight of the words at each place, (rows, frames of a row, height, width)."""
    _means: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False)
    """Over the layers, each in the size of the largest."""

    @property
    def is_measuring(self) -> bool:
        return self._measures

    @contextmanager
    def measures(self) -> Iterator[None]:
        """What was measured before is forgotten."""
        self._seen, self._measures = {}, True
        try:
            yield
        finally:
            self._measures = False
        seen, self._seen = self._seen, {}
        self._means = {frames: _mean(weights) for frames, weights in seen.items()}

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        out = proceed(call.q, call.k, call.v)
        places = _places_in(call) if self._measures and call.site.reads_text else None
        if places is None:
            return out
        require_whole_frames(call)
        frames, tokens, (height, width) = places
        seen = self._seen.setdefault(call.frame_indices, [])
        fewest = min((prod(each.shape[-2:]) for each in seen), default=tokens)
        if tokens > max(LARGEST, fewest):
            return out
        if fewest > max(LARGEST, tokens):
            seen.clear()
        columns = torch.zeros_like(call.v)
        columns[..., self._columns(call), :] = 1
        weight = call.per_head_output(proceed(call.q, call.k, columns)).float().mean(dim=(1, 3))  # (rows, tokens of q)
        weight = weight.unflatten(0, (len(call.branches), -1)).mean(dim=0)  # of combined prompts
        lead = call.leading_tokens or 0
        seen.append(weight[:, lead : lead + frames * tokens].reshape(-1, frames, height, width))
        return out

    def _columns(self, call: AttentionCall) -> list[int]:
        copies = copies_in(call.k.shape[-2], self.length, "source", call.site.name, "choose another 'replace'")
        return [copy * self.length + token for copy in range(copies) for token in self.tokens]

    def of(self, call: AttentionCall) -> Tensor:
        """M of the queries of one branch in ``call``, (rows, tokens)."""
        require_whole_frames(call)
        mean = self._means.get(call.frame_indices)
        if mean is None:
            raise UnpairedBranchError(
                f"blend: attention layer {call.site.name} has other frames than the layers that see the prompt. Remove "
                "the node that cuts the clip, or leave that layer out of the registry."
            )
        queries, (height, width) = call.q.shape[-2], mean.shape[-2:]
        if call.site.kind == "temporal":  # a place to a row, its frames in the tokens
            return _mask(mean, _grid_like(call.rows_per_branch, (height, width))).reshape(queries, -1).T
        places = _places_in(call)
        if places is None or len(mean) != call.rows_per_branch:
            raise UnpairedBranchError(
                f"blend: in attention layer {call.site.name} it cannot be told which token lies where in the picture. "
                "Another node merges tokens or cuts the picture into tiles (ToMe, HyperTile): remove it, or choose "
                "another 'replace'."
            )
        mask, lead = _mask(mean, places[2]).flatten(1), call.leading_tokens or 0
        return F.pad(mask, (lead, queries - lead - mask.shape[-1]))


def _places_in(call: AttentionCall) -> tuple[int, int, tuple[int, int]] | None:
    """How many frames a row has, how many tokens a frame, and their height and width; None where that is not told."""
    frames, tokens = 1, call.tokens_per_frame or call.q.shape[-2]
    if call.site.frames_in == "tokens" and call.tokens_per_frame:
        frames = call.frames
    if call.site.frames_in is None or call.grid is None or tokens != prod(call.grid):
        return None
    return frames, tokens, call.grid


def _grid_like(places: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of so many ``places``, most like ``shape``."""
    sizes = [(n, places // n) for n in range(1, places + 1) if places % n == 0]
    return min(sizes, key=lambda size: abs(log(size[0] * shape[1] / (size[1] * shape[0]))))


def _mean(weights: Sequence[Tensor]) -> Tensor:
    height, width = max((each.shape[-2:] for each in weights), key=prod)
    return torch.stack([_resized(each, (height, width)) for each in weights]).mean(dim=0)


def _resized(weight: Tensor, size: tuple[int, int]) -> Tensor:
    if weight.shape[-2:] == tuple(size):
        return weight
    return F.interpolate(weight, size=tuple(size), mode="bilinear", align_corners=False)


def _mask(weight: Tensor, size: tuple[int, int]) -> Tensor:
    weight = _resized(weight, size)
    return weight > THRESHOLD * weight.amax(dim=(-2, -1), keepdim=True)


@dataclass(frozen=True)
class Blend(Replacement):
    """The technique at self-attention: ``map`` where ``masks`` are 0."""

    masks: WordMasks | None = None

    def _see(self, call: AttentionCall) -> None:
        if self.masks is None or not self.masks.is_measuring:  # that call of the source comes once more
            super()._see(call)

    def _replaced(self, call: AttentionCall, donors: Sequence[int], proceed: Proceed) -> Tensor:
        branches = len(call.branches)
        targets = [n for n, donor in enumerate(donors) if donor != n]
        out = proceed(call.q, call.k, call.v)
        target, source = call.only(targets), call.only([donors[n] for n in targets])
        as_source = proceed(source.q, source.k, target.v, branches=source.branches)
        return with_rows(out, branches, targets, self._blended(target, rows_of(out, branches, targets), as_source))

    def _from_partner(self, call: AttentionCall, given: Given[AttentionCall], proceed: Proceed) -> Tensor:
        own, as_source = proceed(call.q, call.k, call.v), super()._from_partner(call, given, proceed)
        return self._blended(call, own, as_source)

    def _blended(self, call: AttentionCall, own: Tensor, as_source: Tensor) -> Tensor:
        """Of the branches of ``call``, which have one mask."""
        assert self.masks is not None
        mask = self.masks.of(call).repeat(len(call.branches), 1)
        return torch.where(mask[..., None] if own.ndim == 3 else mask[:, None, :, None], own, as_source)
