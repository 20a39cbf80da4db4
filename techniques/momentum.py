"""Temporal momentum attention: ZS² (arXiv 2407.21475) §4.1, Eq. 3.

Every frame attends to running averages of the keys and values of all frames so far:

    K̈¹ = K¹,   K̈ⁱ = μᵢ K̈ⁱ⁻¹ + (1 − μᵢ) Kⁱ,   the same for V;   out ⁱ = softmax(Qⁱ K̈ⁱᵀ / √c) V̈ⁱ

μ = 0 is self-attention, μ = 1 cross-frame attention to the first frame. The recursion is linear, so a clip is one
product with a lower triangular matrix (the paper's U, transposed), per-frame μ included. It is causal, too: a clip
may come in chunks of frames (:mod:`..attention.chunks`), each going on from K̈ and V̈ of the last frame before it; and
in runs, each going on from what :mod:`.kept` holds of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..frames.schedule import frame_schedule
from .kept import KeptRuns, Momentum
from .technique import AttentionCall, Proceed, Technique, require_told_keys


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
    return _averages(x, weights).to(x.dtype).reshape(x.shape)


def _averages(x: Tensor, weights: Tensor, before: Tensor | None = None) -> Tensor:
    """The same as (branches, frames, ·), in at least float32.

    ``before``: the average at the frame before the first, (branches, 1, ·); its weights are the first column then.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    weights = weights.to(x.device, dtype)
    frames = x.reshape(-1, len(weights), x[0].numel()).to(dtype)
    if before is None:
        return weights @ frames
    return (weights[:, 1:] @ frames).addcmul_(weights[:, :1], before)


@dataclass(frozen=True)
class TemporalMomentum(Technique):
    """The technique: ``mu`` for every frame, or ``schedule`` (``0:0.98, 8:0.5``) where it is not empty."""

    mu: float
    schedule: str = ""
    frames_per_batch: int = 0
    previous: Momentum | None = None
    kept: KeptRuns | None = None
    supports_chunks = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        if call.frames == 1 and call.memory is None:
            return proceed(call.q, call.k, call.v)
        require_told_keys(call)
        weights = _scheduled_matrix(
            self.mu, self.schedule, call.clip_numbers or call.frame_indices, goes_on=bool(call.memory)
        )

        def running(name: str, x: Tensor) -> Tensor:
            return call.with_frame(x, _running(name, call.of_frame(x), weights, call.memory))

        return proceed(call.q, running("k", call.k), running("v", call.v))


def _running(name: str, x: Tensor, weights: Tensor, memory: dict[str, Tensor] | None) -> Tensor:
    """K̈ of ``x``, going on from what ``memory`` has under ``name``, and leaving there that of the last frame."""
    if memory is None:
        return average_over_frames(x, weights)
    averages = _averages(x, weights, memory.get(name))
    memory[name] = averages[:, -1:].clone()
    return averages.to(x.dtype).reshape(x.shape)


@lru_cache(maxsize=64)
def _scheduled_matrix(mu: float, schedule: str, numbers: tuple[int, ...], goes_on: bool) -> Tensor:
    """(frames, frames) for the frames with these ``numbers``; with a column more, in front, for the average that they
    go on from."""
    values = frame_schedule(schedule, mu, max(numbers) + 1, 0.0, 1.0)[list(numbers)]
    return momentum_matrix(torch.cat([values[:1], values]))[1:] if goes_on else momentum_matrix(values)
