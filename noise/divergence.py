"""Three readings of the KL divergence between two noise samples, which the ZS² paper leaves open.

With p the previous frame and x the next, each is built from three means over a frame's elements,
drift = ⟨e^p (p − x)⟩, W = ⟨e^p⟩ and M = ⟨e^x⟩:

- ``generalised``: drift − W + M, the KL divergence of unnormalised densities e^p and e^x. Never negative,
  zero only for equal frames, and 12 times less noisy than the next.
- ``pointwise``: drift alone, the authors' published pseudocode. Signed.
- ``softmax``: drift / W + log(M / W), the KL divergence of softmax(p) from softmax(x).

For x = √α p + √(1 − α) ε̃ with p and ε̃ independent N(0, I), the expectation is √e (1 − √α) for the first two
and 1 − √α for the last. Zero-shot video sampling (arXiv 2407.21475), §3.1 and Eq. 1.
"""

from collections.abc import Callable
from math import e, sqrt

import torch
from torch import Tensor

_COMBINE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "generalised": lambda drift, w, m: drift - w + m,
    "pointwise": lambda drift, w, m: drift,
    "softmax": lambda drift, w, m: drift / w + (m / w).log(),
}

DIVERGENCES = tuple(_COMBINE)

INDEPENDENT = {"generalised": sqrt(e), "pointwise": sqrt(e), "softmax": 1.0}
"""The expected divergence of two independent frames; a target at or above it means i.i.d. noise."""


class Divergence:
    """Divergence of later frames from one previous frame, whose share of the work is done once.

    ``kind`` is one of ``DIVERGENCES``; ``previous`` has shape S, float32 or float64. Exponentials keep that
    dtype, sums are float64.
    """

    def __init__(self, kind: str, previous: Tensor) -> None:
        self._combine = _COMBINE[kind]
        self._previous = previous.flatten()
        exponential = self._previous.exp()
        self._weight = exponential.double() / exponential.numel()
        self._mass = self._weight.sum()
        self._level = self._weight @ self._previous.double()

    def __call__(self, frames: Tensor) -> Tensor:
        """Divergence of each of ``frames`` (K, *S), as float64 (K,), in nats."""
        frames = frames.flatten(1)
        return self._from_means(frames.double() @ self._weight, _mean_exp(frames))

    def along(self, candidate: Tensor) -> Callable[[float], float]:
        """The divergence of √α p + √(1 − α) ε̃ as a function of α in [0, 1], for one candidate ε̃ of shape S.

        The drift is linear in the frame, so only ⟨e^x⟩ is new work at each α.
        """
        candidate = candidate.flatten()
        tilt = self._weight @ candidate.double()

        def at(alpha: float) -> float:
            a, b = sqrt(alpha), sqrt(1 - alpha)
            frame = blend(self._previous, candidate, alpha)
            return self._from_means(a * self._level + b * tilt, _mean_exp(frame)).item()

        return at

    def _from_means(self, weighted: Tensor, mean_exp: Tensor) -> Tensor:
        return self._combine(self._level - weighted, self._mass, mean_exp)


def blend(previous: Tensor, other: Tensor, alpha: float) -> Tensor:
    """√α previous + √(1 − α) other, of unit variance where both are independent and of unit variance.

    Separate multiplications and one addition round the same on every machine; a fused one need not.
    """
    return previous * sqrt(alpha) + other * sqrt(1 - alpha)


def _mean_exp(frames: Tensor) -> Tensor:
    return frames.exp().mean(-1, dtype=torch.float64)
