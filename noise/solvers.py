"""How much of the previous frame to keep: the α for which the next frame's divergence meets a target.

``kl(α)`` is the divergence on the way from a candidate (α = 0) to the previous frame (α = 1), so kl(1) = 0.
Where even the candidate is no further than the target, α is 0. Targets are positive, in nats.
"""

from collections.abc import Callable

Curve = Callable[[float], float]

_HALVINGS = 48


def bisection(kl: Curve, target: float, tolerance: float = 1e-5) -> float:
    """α in [0, 1) with |kl(α) − target| ≤ ``tolerance``, or 1% of the target where that is less.

    Every α tried is a dyadic fraction, so last-bit differences between machines do not reach the result.
    """
    tolerance = min(tolerance, target / 100)
    if kl(0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        error = kl(middle) - target
        if abs(error) <= tolerance:
            return middle
        low, high = (middle, high) if error > 0 else (low, middle)
    return low


def line_search(kl: Curve, target: float, iterations: int = 15) -> float:
    """Algorithm 1 of ZS² (arXiv 2407.21475): steps of 0.1 while the error falls, otherwise half the step.

    With one guard the paper lacks: no step goes past the target. Without it α = 1, whose error is only the
    target itself, beats α = 0.9 for every target under about 0.042, and all frames become identical.
    """
    alpha, step = 0.0, 0.1
    error = kl(alpha) - target
    for _ in range(iterations):
        if error <= 0:
            break
        ahead = min(alpha + step, 1.0)
        error_ahead = kl(ahead) - target
        if 0 <= error_ahead < error:
            alpha, error = ahead, error_ahead
        else:
            step /= 2
    return alpha


def closed_form(target: float, independent: float) -> float:
    """α = max(0, 1 − target / independent)²: meets the target in expectation; ``independent`` = E kl(0)."""
    return max(0.0, 1 - target / independent) ** 2
