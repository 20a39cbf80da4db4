"""A chain of noise frames that passes through given ones.

Dependency noise and the progressive prior are Gaussian Markov chains: neighbours i and i + 1 correlate by ρ_i, frames
further apart by the product of the ρ between them. Such a chain can be conditioned on any of its frames. Between two
given frames it is a bridge. After the last given frame it continues freely, and before the first one it runs
backwards, because it is reversible.

A loop is the chain on a ring, whose last frame is a neighbour of its first. If all ρ are equal, frames at distance k of
n correlate by (ρ^k + ρ^(n−k)) / (1 + ρ^n). With R the product of all ρ, the ring conditioned on one frame is a bridge
from that frame to itself whose variances are (1 − R) / (1 + R) times those of the chain's bridge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod, sqrt

from torch import Tensor

from .divergence import blend

Fresh = Callable[[int], Tensor]
"""Number of a frame → standard normal noise for it, of a frame's shape."""


def bridged(
    given: Mapping[int, Tensor], correlations: Sequence[float], fresh: Fresh, *, loop: bool = False
) -> list[Tensor]:
    """The frames of a chain, with those of ``given`` unchanged at their numbers.

    Args:
        given: Frames by number, at least one.
        correlations: ρ_i of frames i and i + 1, each in [0, 1]: one less than there are frames. For a loop as many as
            frames; the last is that of the last frame and the first.
        fresh: Noise for each frame that is made.

    Raises:
        ValueError: no frame is given, a number does not exist, or all ρ between two different given frames are 1.
    """
    count = len(correlations) + (not loop)
    numbers = sorted(given)
    if not numbers or numbers[0] < 0 or numbers[-1] >= count:
        raise ValueError(f"given holds frames {numbers}, expected at least one of 0 to {count - 1}.")
    frames = dict(given)
    if loop:
        around = prod(correlations)
        share = (1 - around) / (1 + around)
        for start, end in pairwise([*numbers, numbers[0] + count]):
            steps = [correlations[i % count] for i in range(start, end)]
            made = _bridge(frames[start], frames[end % count], steps, _counted(fresh, start, count), share)
            frames |= {(start + 1 + k) % count: frame for k, frame in enumerate(made)}
    else:
        for i in range(numbers[0] - 1, -1, -1):
            frames[i] = _next(frames[i + 1], fresh(i), correlations[i])
        for start, end in pairwise(numbers):
            made = _bridge(frames[start], frames[end], correlations[start:end], _counted(fresh, start, count))
            frames |= {start + 1 + k: frame for k, frame in enumerate(made)}
        for i in range(numbers[-1] + 1, count):
            frames[i] = _next(frames[i - 1], fresh(i), correlations[i - 1])
    return [frames[i] for i in range(count)]


def ring_correlations(neighbours: Sequence[float]) -> list[float]:
    """The ρ of a ring whose neighbours correlate by ``neighbours``, each in [0, 1]; the last closes the ring.

    On a ring of product R, neighbours correlate by (ρ_i + R/ρ_i) / (1 + R), because they are also joined the other way
    around. ValueError for fewer than three frames, and if one pair should differ more than the others allow.
    """
    if len(neighbours) < 3:
        raise ValueError(f"a loop of {len(neighbours)} frames, expected 3 or more.")
    weakest = min(neighbours)
    if weakest <= 0 or weakest >= 1:
        return list(neighbours)  # open at the weakest pair, or a still picture
    low, high = 0.0, ((1 - sqrt(1 - weakest**2)) / weakest) ** 2  # more would leave the weakest pair no real ρ
    if prod(_on_ring(r, high) for r in neighbours) > high:
        raise ValueError(
            f"the frames of a loop cannot differ by {1 - weakest:.3g} at one place alone: the other frames tie "
            "the two together. Spread the change over more frames."
        )
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if prod(_on_ring(r, middle) for r in neighbours) > middle else (low, middle)
    return [_on_ring(r, low) for r in neighbours]


def _on_ring(neighbours: float, around: float) -> float:
    """The ρ with (ρ + R/ρ) / (1 + R) = ``neighbours`` at R = ``around``: the larger root."""
    total = neighbours * (1 + around)
    return min((total + sqrt(max(total**2 - 4 * around, 0.0))) / 2, 1.0)


def _counted(fresh: Fresh, start: int, count: int) -> Fresh:
    return lambda step: fresh((start + step) % count)


def _next(frame: Tensor, noise: Tensor, correlation: float) -> Tensor:
    return blend(frame, noise, correlation**2)


def _bridge(
    start: Tensor, end: Tensor, correlations: Sequence[float], fresh: Fresh, share: float = 1.0
) -> Iterator[Tensor]:
    """The frames between ``start`` and ``end``; ``share`` scales their variances given the two.

    With r the correlation of the frame before and R that of the next frame and the end,
    x_i = a·x_{i−1} + b·x_n + √v·ξ, a = r(1 − R²)/(1 − r²R²), b = R(1 − r²)/(1 − r²R²), v = (1 − r²)(1 − R²)/(1 − r²R²).
    """
    frame = start
    for step in range(1, len(correlations)):
        r, rest = correlations[step - 1], prod(correlations[step:])
        left = 1 - (r * rest) ** 2
        if left == 0:  # nothing changes between here and the end
            if step == 1 and not start.equal(end):
                raise ValueError(
                    "the frames between two key frames cannot all be equal, because the two differ. Raise kl, or lower "
                    "alpha, between them."
                )
            yield frame
            continue
        a, b = r * (1 - rest**2) / left, rest * (1 - r**2) / left
        v = (1 - r**2) * (1 - rest**2) / left
        frame = frame * a + end * b + fresh(step) * sqrt(v * share)
        yield frame
