"""Candidates that keep a chain of frames standard normal: orthogonal to the frame before.

Dependency noise blends each frame from the one before and a fresh candidate (ZS², arXiv 2407.21475, Eq. 1). A candidate
that happens to resemble the previous frame p makes the blend too strong, and a search for a small divergence prefers
such candidates. Without its components along 1, p and e^p the candidate neither changes the norm of the blend,

    |x|² = α|p|² + (1 − α)|c|²,

nor its drift ⟨e^p(p − x)⟩ = (1 − √α)⟨e^p p⟩, so no search is needed and the ``pointwise`` divergence has a closed form.
"""

import torch
from torch import Tensor

from .divergence import exponential


def orthogonal(candidate: Tensor, previous: Tensor) -> Tensor:
    """``candidate`` without its components along 1, p and e^p, scaled to the norm that it had.

    All elements count as one vector; sums are float64. Both have the same shape and float32 or float64, as the result.
    """
    p, c = previous.double().flatten(), candidate.double().flatten()
    directions = torch.stack([torch.ones_like(p), p, exponential(p)], dim=1)
    basis = torch.linalg.qr(directions).Q
    rest = c - basis @ (basis.T @ c)
    return (rest * (c.norm() / rest.norm())).to(candidate.dtype).view_as(candidate)
