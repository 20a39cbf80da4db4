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
from math import e, log, log2, sqrt

import torch
from torch import Tensor

_COMBINE: dict[str, Callable[[float, float, float], float]] = {
    "generalised": lambda drift, w, m: drift - w + m,
    "pointwise": lambda drift, w, m: drift,
    "softmax": lambda drift, w, m: drift / w + log(m / w),
}

DIVERGENCES = tuple(_COMBINE)

INDEPENDENT = {"generalised": sqrt(e), "pointwise": sqrt(e), "softmax": 1.0}
"""The expected divergence of two independent frames; a target at or above it means i.i.d. noise."""


class Divergence:
    """Divergence of later frames from one previous frame, whose share of the work is done once.

    ``kind`` is one of ``DIVERGENCES``; ``previous`` is float32 or float64. Exponentials keep that dtype, sums
    are float64, results are in nats. ``level`` is ⟨e^p p⟩, the drift of a frame orthogonal to e^p.
    """

    def __init__(self, kind: str, previous: Tensor) -> None:
        self._combine = _COMBINE[kind]
        self._previous = previous
        self._weight = exponential(previous).double() / previous.numel()
        self._mass = self._weight.sum().item()
        self.level = self._weighted_mean(previous)

    def __call__(self, frame: Tensor) -> float:
        """The divergence of ``frame``, shaped as the previous one."""
        return self._combine(self.level - self._weighted_mean(frame), self._mass, _mean_exp(frame))

    def along(self, candidate: Tensor) -> Callable[[float], float]:
        """The divergence of √α p + √(1 − α) ε̃ as a function of α in [0, 1], for one candidate ε̃.

        The drift is linear in the frame, so only ⟨e^x⟩ is new work at each α.
        """
        tilt = self._weighted_mean(candidate)

        def at(alpha: float) -> float:
            drift = self.level - sqrt(alpha) * self.level - sqrt(1 - alpha) * tilt
            return self._combine(drift, self._mass, _mean_exp(blend(self._previous, candidate, alpha)))

        return at

    def _weighted_mean(self, frame: Tensor) -> float:
        return (self._weight * frame).sum().item()


def blend(previous: Tensor, other: Tensor, alpha: float) -> Tensor:
    """√α previous + √(1 − α) other, of unit variance where both are independent and of unit variance.

    Separate multiplications and one addition round the same on every machine; a fused one need not.
    """
    return previous * sqrt(alpha) + other * sqrt(1 - alpha)


def _mean_exp(frame: Tensor) -> float:
    return exponential(frame).mean(dtype=torch.float64).item()


def exponential(x: Tensor) -> Tensor:
    """e^x as 2^(x log₂ e): torch's exp shares even small tensors out to threads, and on a machine with busy
    cores their meeting takes a thousand times as long as the work.
    """
    return (x * log2(e)).exp2()
