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

_DIRECTIONS = 3


def orthogonal(candidate: Tensor, previous: Tensor) -> Tensor:
    """``candidate`` without its components along 1, p and e^p, scaled to the norm that it had.

    All elements count as one vector; sums are float64. Both have the same shape and float32 or float64, as the result.
    A candidate of three values or fewer stays as it is: nothing of it would be left.
    """
    if candidate.numel() <= _DIRECTIONS:
        return candidate
    p, c = previous.double().flatten(), candidate.double().flatten()
    directions = torch.stack([torch.ones_like(p), p, exponential(p)])
    gram = directions @ directions.T
    shares = _rounded(torch.linalg.pinv(gram, hermitian=True) @ (directions @ c))
    rest = c - (shares[0] + shares[1] * directions[1] + shares[2] * directions[2])
    return (rest * _rounded(c.norm() / rest.norm())).to(candidate.dtype).view_as(candidate)


def _rounded(x: Tensor) -> Tensor:
    """To 2⁻³² of 1: the order in which threads add up must not reach the result."""
    return (x * 2**32).round() / 2**32
