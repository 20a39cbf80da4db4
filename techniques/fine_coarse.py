"""Fine-coarse frame attention, EI²'s FFAM (written from the supplement, §B, which
leaves its form open: averages of ``pool`` × ``pool`` keys).

A frame's queries see the fine patches of their own frame and coarse ones of all others: keys and values are
[own frame; average-pooled keys of every other frame], with self-attention's own weights. ``pool`` 1 is full
space-time attention; a clip of one frame is self-attention. Of equal frames it is not, as means are not the tokens:
untuned it changes a clip that stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .technique import AttentionCall, Proceed, Stage, Technique, require_own_keys


class GridError(ValueError):
    """The layer does not tell how its tokens lie in a frame."""


def coarse(x: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Means over ``pool`` × ``pool`` tokens of ``x`` (…, height · width, channels); at the edges, of what is there."""
    pictures = x.unflatten(-2, grid).movedim(-1, -3).flatten(0, -4)
    means = F.avg_pool2d(pictures, pool, ceil_mode=True, count_include_pad=False)
    return means.flatten(2).transpose(1, 2).reshape(*x.shape[:-2], -1, x.shape[-1])


def fine_and_coarse(x: Tensor, frames: int, grid: tuple[int, int], pool: int) -> Tensor:
    """For every frame of ``x`` (clips · frames, …, tokens, channels) its own tokens, then the others' means."""
    own = x.unflatten(0, (-1, frames))
    others = [[other for other in range(frames) if other != frame] for frame in range(frames)]
    means = coarse(x, grid, pool).unflatten(0, (-1, frames))[:, torch.tensor(others, device=x.device)]
    # (clips, frames, others, …, tokens, channels): the others come to lie beside the tokens
    means = means.movedim(2, -3).flatten(-3, -2)
    return torch.cat([own, means], dim=-2).flatten(0, 1)


@dataclass(frozen=True)
class FineCoarse(Technique):
    """The technique. ``pool``: height and width in tokens of a coarse patch."""

    pool: int = 2
    stage = Stage.FURTHER_KEYS

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        if call.frames == 1:
            return proceed(call.q, call.k, call.v)
        require_own_keys(call)
        grid = call.grid
        if grid is None:
            raise GridError(
                f"Fine-coarse attention needs the height and width of a frame at {call.site.name}, but the model does "
                "not provide them: another node may have replaced the layer. Leave it out of 'layers', or use "
                "frame_attention sparse_causal."
            )

        def fine_coarse(x: Tensor) -> Tensor:
            return call.with_frame(x, fine_and_coarse(call.of_frame(x), call.frames, grid, self.pool))

        return proceed(call.q, fine_coarse(call.k), fine_coarse(call.v))
