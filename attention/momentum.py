"""Temporal momentum attention: ZS² (arXiv 2407.21475) §4.1, Eq. 3.

Every frame attends to running averages of the keys and values of all frames so far:

    K̈¹ = K¹,   K̈ⁱ = μᵢ K̈ⁱ⁻¹ + (1 − μᵢ) Kⁱ,   the same for V;   out ⁱ = softmax(Qⁱ K̈ⁱᵀ / √c) V̈ⁱ

μ = 0 is self-attention, μ = 1 cross-frame attention to the first frame. The recursion is linear, so a clip is one
product with a lower triangular matrix (the paper's U, transposed), per-frame μ included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..noise.schedule import frame_schedule
from .technique import AttentionCall, Proceed


def momentum_matrix(mu: Tensor) -> Tensor:
    """Weights w with K̈ⁱ = Σⱼ wᵢⱼ Kʲ.

    ``mu``: μ of every frame, (frames,), floating point; that of the first frame has no effect. Returns
    (frames, frames), lower triangular, rows summing to one, in the dtype of ``mu``.
    """
    weights = torch.zeros(len(mu), len(mu), dtype=mu.dtype, device=mu.device)
    weights[0, 0] = 1
    for i in range(1, len(mu)):
        weights[i] = mu[i] * weights[i - 1]
        weights[i, i] = 1 - mu[i]
    return weights


def average_over_frames(x: Tensor, weights: Tensor) -> Tensor:
    """Σⱼ wᵢⱼ xʲ for the frames of every branch.

    ``x``: (branches · frames, ...), frames inside; ``weights``: (frames, frames). Accumulates in at least float32,
    returns the shape and dtype of ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    frames = x.reshape(-1, len(weights), x[0].numel())
    return (weights.to(x.device, dtype) @ frames.to(dtype)).to(x.dtype).reshape(x.shape)


@dataclass(frozen=True)
class TemporalMomentum:
    """The technique: ``mu`` for every frame, or ``schedule`` (``0:0.98, 8:0.5``) where it is not empty."""

    mu: float
    schedule: str = ""
    stage = 0

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        if call.frames == 1:
            return proceed(call.q, call.k, call.v)
        weights = _scheduled_matrix(self.mu, self.schedule, call.frame_indices)
        return proceed(call.q, average_over_frames(call.k, weights), average_over_frames(call.v, weights))


@lru_cache(maxsize=64)
def _scheduled_matrix(mu: float, schedule: str, frame_indices: tuple[int, ...]) -> Tensor:
    values = frame_schedule(schedule, mu, max(frame_indices) + 1, 0.0, 1.0)
    return momentum_matrix(values[list(frame_indices)])
