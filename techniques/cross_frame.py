"""Cross-frame attention: keys and values taken from other frames, queries from the own.

``first``: those of frame 1 (Text2Video-Zero, arXiv 2303.13439, Eq. 6; ZS² §4). ``previous``: those of the frame
before. ``first_and_previous``: both side by side (Tune-A-Video's sparse-causal attention, arXiv 2212.11565, §4.2).
The first frame has no frame before it and attends to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .technique import AttentionCall, Proceed, Stage, Technique, require_own_keys

Keys = Literal["first", "previous", "first_and_previous"]


def source_frames(keys: Keys, frames: int) -> list[list[int]]:
    """For each part of the keys, the frame that every frame takes it from."""
    first, previous = [0] * frames, [max(i - 1, 0) for i in range(frames)]
    return {"first": [first], "previous": [previous], "first_and_previous": [first, previous]}[keys]


def take_from_frames(x: Tensor, sources: list[list[int]]) -> Tensor:
    """``x``: (branches · frames, ..., tokens, channels), frames inside → the parts joined along the tokens."""
    frames = x.unflatten(0, (-1, len(sources[0])))
    return torch.cat([frames[:, source].flatten(0, 1) for source in sources], dim=-2)


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
