"""GE-Adapter's temporal loss (§3.2, Eq. 3 and 4; Eq. 22 of its appendix).

    Sim(F_t, F_{t+1}) = ⟨F_t, F_{t+1}⟩ / (‖F_t‖ ‖F_{t+1}‖)
    L_temporal = 1/(T−1) Σ_{t=2}^{T−1} (Sim(F_t, F_{t+1}) − Sim(F_{t−1}, F_t))² = ‖Ds‖² / (T−1)

over the T frames of a clip, F_t all features of frame t as one vector, s_t = Sim(F_t, F_{t+1}) and D the differences
of neighbours. It asks that frames change evenly, not that they do not change.

Readings. T counts frames (the text below Eq. 4 says timesteps). Eq. 4 begins at t = 1, where F_0 is missing: the
bounds are Eq. 22's. The published code takes the cosine over an axis of length 1, where it is the sign of a product
and its gradient exactly 0: that loss trains nothing. Here every axis but the frames' is flattened first.

What holds: ‖∇_{F_t} Sim‖ = √(1−s²) / ‖F_t‖ (Eq. 23 bounds it by 2/M, M an upper bound of the norms: it takes a lower
one), and ‖∇_{F_t} L‖ ≤ 16 / ((T−1) · min‖F‖).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_FRAMES = 3
"""Two similarities are compared, so three frames are the fewest."""


def similarities(features: Tensor) -> Tensor:
    """s, (..., T−1): the cosine of each frame with the next. ``features``: (..., T, N).

    In float64 for float64 features, else in float32. A frame of zeros is like no other: 0.
    """
    features = features if features.dtype == torch.float64 else features.float()
    lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    directions = features / lengths.clamp_min(torch.finfo(features.dtype).tiny)
    return (directions[..., :-1, :] * directions[..., 1:, :]).sum(dim=-1)


def temporal_loss(features: Tensor, frames: int) -> Tensor:
    """L_temporal, the mean over the clips of a batch; a scalar. ``features``: (clips · T, ...), T = ``frames``.

    ValueError where there are fewer than three frames, or the rows are no whole clips.
    """
    if frames < MIN_FRAMES:
        raise ValueError(f"The temporal loss compares neighbouring pairs: expected at least 3 frames, got {frames}.")
    if len(features) == 0 or len(features) % frames:
        raise ValueError(f"Expected whole clips of {frames} frames, got {len(features)} rows of features.")
    change = similarities(features.reshape(-1, frames, features[0].numel())).diff(dim=-1)
    return change.square().sum(dim=-1).mean() / (frames - 1)


def temporal_loss_of_layers(layers: Sequence[Tensor], frames: int) -> Tensor:
    """The mean of :func:`temporal_loss` over the features F_{l,b} of several layers (Eq. 2); ValueError for none."""
    if not layers:
        raise ValueError("Expected the features of at least one layer, got none.")
    return torch.stack([temporal_loss(features, frames) for features in layers]).mean()
