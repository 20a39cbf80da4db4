"""Cross-frame attention: keys and values taken from other frames, queries from the own.

``first``: those of frame 1 (Text2Video-Zero, arXiv 2303.13439, Eq. 6; ZS² §4). ``previous``: those of the frame
before. ``first_and_previous``: both side by side (Tune-A-Video's sparse-causal attention, arXiv 2212.11565, §4.2).
The first frame has no frame before it and attends to itself.

``all``: those of all frames side by side, the own among them, vid2vid-zero's dense attention (arXiv 2303.17599, §3.3):

    out ⁱ = softmax(Qⁱ [K¹ … Kᶠ]ᵀ / √c) [V¹ … Vᶠ]

``random``: those of one other frame, drawn uniformly for every frame at every noise level. All layers and branches at
one level have the same draw. No published code defines it; it is the cheapest way in which every frame meets every
other over the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..frames.streams import of_level
from .technique import AttentionCall, Proceed, Stage, Technique, require_own_keys, require_told_keys

Keys = Literal["first", "previous", "first_and_previous"]
AnyKeys = Literal["all", "random"]


def source_frames(keys: Keys, frames: int) -> list[list[int]]:
    """For each part of the keys, the frame that every frame takes it from."""
    first, previous = [0] * frames, [max(i - 1, 0) for i in range(frames)]
    return {"first": [first], "previous": [previous], "first_and_previous": [first, previous]}[keys]


def take_from_frames(x: Tensor, sources: list[list[int]]) -> Tensor:
    """``x``: (branches · frames, ..., tokens, channels), frames inside → the parts joined along the tokens."""
    frames = x.unflatten(0, (-1, len(sources[0])))
    return torch.cat([frames[:, source].flatten(0, 1) for source in sources], dim=-2)


def all_frames(x: Tensor, frames: int) -> Tensor:
    """The tokens of all frames of a branch of ``x``, laid out as in :func:`take_from_frames`, for each of them."""
    return x.unflatten(0, (-1, frames)).movedim(1, -3).flatten(-3, -2).repeat_interleave(frames, dim=0)


def random_others(frames: int, seed: int, sigma: float) -> list[int]:
    """For every frame another one, at the noise level ``sigma``."""
    drawn = torch.randint(frames - 1, (frames,), generator=of_level(seed, sigma)).tolist()
    return [other + (other >= frame) for frame, other in enumerate(drawn)]


@dataclass(frozen=True)
class CrossFrame(Technique):
    """The technique. Of a clip in chunks it keeps the keys and values of the first frame and of the last before."""

    keys: Keys
    stage: Stage = Stage.KEYS
    supports_chunks = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        if self.keys == "first_and_previous":
            require_own_keys(call)
        if call.memory is None and call.frames == 1:
            return proceed(call.q, call.k, call.v)
        require_told_keys(call)

        def taken(name: str, x: Tensor) -> Tensor:
            frame = call.of_frame(x)
            if call.memory is not None:
                return call.with_frame(x, self._taken(name, frame, len(call.branches), call.memory))
            return call.with_frame(x, take_from_frames(frame, source_frames(self.keys, call.frames)))

        return proceed(call.q, taken("k", call.k), taken("v", call.v))

    def _taken(self, name: str, x: Tensor, branches: int, memory: dict[str, Tensor]) -> Tensor:
        """For the frames ``x`` of a chunk, with those that ``memory`` has under ``name`` in front."""
        chunk = x.unflatten(0, (branches, -1))
        kept = memory.get(name, chunk[:, :0])
        known = torch.cat([kept, chunk], dim=1)
        memory[name] = known[:, [0, -1]]
        sources = (source[kept.shape[1] :] for source in source_frames(self.keys, known.shape[1]))
        return torch.cat([known[:, source].flatten(0, 1) for source in sources], dim=-2)


@dataclass(frozen=True)
class AnyFrames(Technique):
    """The technique where frames take from later ones, too: all must be in the call, so there are no chunks."""

    keys: AnyKeys
    seed: int = 0
    stage: Stage = Stage.KEYS

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        if self.keys == "all":
            require_own_keys(call)
        if call.frames == 1:
            return proceed(call.q, call.k, call.v)
        require_told_keys(call)
        sources = [] if self.keys == "all" else [random_others(call.frames, self.seed, call.sigma)]

        def taken(x: Tensor) -> Tensor:
            frame = call.of_frame(x)
            return call.with_frame(x, take_from_frames(frame, sources) if sources else all_frames(frame, call.frames))

        return proceed(call.q, taken(call.k), taken(call.v))
