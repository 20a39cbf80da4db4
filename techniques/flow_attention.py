"""Attention along optical flow: FLATTEN (arXiv 2310.05922), §3.3.

After dense attention over all frames, H = Attention(Q, [K¹ … Kᶠ], [V¹ … Vᶠ]), each token attends once more, to the
tokens of its own path through the clip (:mod:`..frames.trajectories`):

    out_z = softmax(Q_z K_path(z)ᵀ / √c) H_path(z)

with the layer's own Q and K, and what dense attention made as values. A patch that is hidden or out of the frame in
another frame has no token there. Without flow this is attention over the frames at one place. The authors' code does
the second step where a frame has 64 × 64 tokens, and the first everywhere: ``heights``. It has a switch, ``old_qk``:
1 is the above, the paper's; 0, which their script sets, takes H as queries and keys, too, and is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..frames.trajectories import paths
from .cross_frame import AnyFrames
from .technique import AttentionCall, Proceed, Stage, Technique, require_whole_frames


class FlowError(ValueError):
    """The flow does not fit the clip or the model."""


def along(q: Tensor, k: Tensor, v: Tensor, table: Tensor, scale: float | None) -> Tensor:
    """Attention within paths. ``q``, ``k``, ``v``: (clips, frames, heads, tokens, channels); ``table``:
    (paths, frames), the token of a path in each frame, −1 for none. Returns the shape of ``v``."""
    there = table >= 0
    frames = torch.arange(table.shape[1], device=table.device).expand_as(table)

    def gathered(x: Tensor) -> Tensor:
        """(clips · paths, heads, frames, channels)"""
        found = x.movedim(2, 3)[:, frames, table.clamp(min=0)]
        return found.movedim(3, 2).flatten(0, 1)

    mask = there[:, None, None].repeat(len(q), 1, 1, 1)
    parts = gathered(q), gathered(k), gathered(v)
    out = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
    found = out.unflatten(0, (len(q), -1)).movedim(2, 3)
    result = torch.empty_like(v.movedim(2, 3))
    path, frame = there.nonzero(as_tuple=True)  # once: a GPU waits for it
    result[:, frame, table[path, frame]] = found[:, path, frame]
    return result.movedim(3, 2)


@dataclass(eq=False)
class FlowAttention(Technique):
    """The technique. ``flow``: as :func:`..frames.trajectories.paths` takes it, of the run's clip, or of a whole clip
    of which the run holds a part; ``heights``: of frames in tokens where paths are followed, empty for all."""

    flow: Tensor
    heights: tuple[int, ...] = ()
    stage = Stage.KEYS

    _tables: dict[tuple, Tensor] = field(default_factory=dict, init=False)
    _seen: set[int] = field(default_factory=set, init=False)
    _level: float | None = field(default=None, init=False)

    def begin(self) -> None:
        self._seen, self._level = set(), None

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        dense = AnyFrames("all").attend(call, proceed)
        if call.frames == 1:
            return dense
        if call.grid is None:
            raise FlowError(
                f"Flow attention needs the height and width of a frame at {call.site.name}, but the model does not "
                "provide them: another node may have replaced the layer. Leave it out of 'layers'."
            )
        require_whole_frames(call)
        if not self._follows(call.grid[0], call.sigma):
            return dense
        q, k, _ = (call.of_frame(x).unflatten(0, (-1, call.frames)) for x in call.per_head())
        heads = call.per_head_output(dense)
        values = call.of_frame(heads).unflatten(0, (-1, call.frames))
        out = along(q, k, values, self._table(call), call.scale).flatten(0, 1)
        out = call.with_frame(heads, out.to(heads.dtype))
        return out.transpose(1, 2).flatten(2) if call.heads_joined else out

    def _follows(self, height: int, sigma: float) -> bool:
        """FlowError at the second step where no layer has one of the heights that were asked for."""
        if self._level is not None and sigma != self._level and self._seen.isdisjoint(self.heights) and self.heights:
            raise FlowError(
                f"resolutions is {', '.join(map(str, self.heights))}, but frames are "
                f"{', '.join(map(str, sorted(self._seen)))} tokens high in this model's layers at this size. Name some "
                "of these, or leave it empty for all."
            )
        self._level = sigma
        self._seen.add(height)
        return not self.heights or height in self.heights

    def _table(self, call: AttentionCall) -> Tensor:
        images = len(self.flow) + 1
        indices = call.frame_indices if call.clip_length in (None, images) else call.clip_numbers
        if indices is None or indices != tuple(range(indices[0], indices[-1] + 1)) or indices[-1] >= images:
            drawn = indices or call.frame_indices
            raise FlowError(
                f"images holds {images} frames, but the model draws frames {drawn[0]} to {drawn[-1]} "
                f"({len(drawn)} of them), expected frames of the same clip that follow one another. Give it as many "
                "images as the latent has frames."
            )
        assert call.grid is not None
        key = call.grid, indices, call.q.device
        if key not in self._tables:
            self._tables[key] = paths(self.flow[indices[0] : indices[-1]], call.grid).to(call.q.device)
        return self._tables[key]
