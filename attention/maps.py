"""The attention map of one layer, averaged over its heads, for display (IE-Adapt, Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..techniques.entropy import CHUNK_BYTES, four_dimensional
from ..techniques.technique import AttentionCall
from .recorder import Recorder
from .sites import Site

MAX_MAPS = 16
MAX_CELLS = 1024
"""Maps with more rows or columns are shown as means over square cells, as no screen has more points."""


class MapTooLargeError(ValueError):
    """A map does not fit into memory."""


@dataclass(frozen=True)
class AttentionMap:
    """A head-averaged map, on the CPU in float32.

    ``plain``: mean weight in each cell, (rows, columns); ``above``: the share of its weights that are above the
    threshold. ``tokens`` and ``keys``: N_q and N_k of the map itself. ``label``: of what it is the mean.
    """

    plain: Tensor
    above: Tensor
    tokens: int
    keys: int
    label: str


@dataclass(eq=False)
class MapRecorder(Recorder):
    """Keeps the maps of the layer that it is put on.

    One map for each frame (or clip, where attention spans it), ``MAX_MAPS`` at most; of temporal attention, which has
    a map for each position of the picture, their mean. ``threshold`` counts in weights of uniform attention, 1/N_k.
    ``free_memory`` gives the bytes that a device has left.
    """

    threshold: float
    free_memory: Callable[[torch.device], float]

    maps: list[AttentionMap] = field(default_factory=list, init=False)

    def record(self, call: AttentionCall, out: Tensor) -> None:
        if len(self.maps) == MAX_MAPS:
            return
        q, k, _ = call.per_head()
        rows, heads, tokens, keys = *q.shape[:3], k.shape[2]
        self._require_memory(call.site, tokens, keys, q.device)
        mask = four_dimensional(call.mask)
        masks = [None] * rows if mask is None else mask.expand(rows, heads, *mask.shape[2:])
        if call.site.kind == "temporal":
            mask = None if mask is None else mask.expand(rows, heads, *mask.shape[2:]).flatten(0, 1)
            mean = mean_map(q.flatten(0, 1), k.flatten(0, 1), call.scale, mask)
            self._keep(mean, f"mean of {heads} heads and {rows} positions")
            return
        by_frame = call.site.frames_in == "rows" and call.frames == call.rows_per_branch
        for i in range(min(rows, MAX_MAPS - len(self.maps))):
            of_frame = f"frame {call.frame_indices[i % call.frames]}, " if by_frame else ""
            self._keep(mean_map(q[i], k[i], call.scale, masks[i]), f"{of_frame}mean of {heads} heads")

    def _keep(self, weights: Tensor, label: str) -> None:
        tokens, keys = weights.shape
        above = (weights > self.threshold / keys).float()
        self.maps.append(AttentionMap(_reduced(weights), _reduced(above), tokens, keys, label))

    def _require_memory(self, site: Site, tokens: int, keys: int, device: torch.device) -> None:
        needed = 3 * 4 * tokens * keys  # the mean, and one head's scores and weights, in float32
        available = self.free_memory(device)
        if needed > available:
            raise MapTooLargeError(
                f"The map of {site.name} has {tokens:,} × {keys:,} weights and needs {needed:,} bytes, but "
                f"{int(available):,} are available on {device}. Use a smaller latent, or a layer with fewer tokens."
            )


def mean_map(q: Tensor, k: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
    """Mean over heads of softmax(scale·q kᵀ + mask): (N_q, N_k) in float32, rows summing to one.

    ``q``, ``k``: (heads, N, channels); ``scale``: 1/√channels if None; ``mask``: (heads, N_q or 1, N_k), boolean
    (True = attend) or added to the scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    total = torch.zeros(q.shape[1], k.shape[1], device=q.device)
    at_once = max(1, CHUNK_BYTES // (4 * total.numel()))
    for start in range(0, len(q), at_once):
        part = slice(start, start + at_once)
        scores = (q[part].float() * scale) @ k[part].float().transpose(-2, -1)
        if mask is not None:
            hides = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask[part], -torch.inf) if hides else scores + mask[part]
        total += scores.softmax(dim=-1).sum(dim=0)
    return total / len(q)


def _reduced(values: Tensor) -> Tensor:
    rows, columns = (min(n, MAX_CELLS) for n in values.shape)
    return F.adaptive_avg_pool2d(values[None, None], (rows, columns))[0, 0].cpu()
