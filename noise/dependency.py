"""The dependency noise model: each frame's noise lies a chosen KL divergence λ from the frame before.

Zero-shot video sampling (arXiv 2407.21475), §3.1 and Algorithm 1.
"""

from collections.abc import Iterator, Sequence
from math import sqrt

from torch import Tensor

from .divergence import DIVERGENCES, INDEPENDENT, Divergence, blend
from .orthogonal import orthogonal as made_orthogonal
from .solvers import bisection, closed_form, line_search
from .streams import Draw

SOLVERS = ("bisection", "line_search", "closed_form")

MOST_ITERATIONS = 100
"""Of the line search, which needs 2 for every halving of its error."""

REACHED = 1.25
"""How far above a target, as a factor, ``line_search`` may end."""


def dependency_noise(
    first: Tensor,
    draw: Draw,
    kl: Sequence[float],
    *,
    divergence: str = "generalised",
    solver: str = "bisection",
    orthogonal: bool = True,
    candidates: int = 1,
    line_iterations: int = 15,
) -> Iterator[Tensor]:
    """Yield the frames ε^i = √α ε^{i−1} + √(1 − α) ε̃, α such that KL(ε^i, ε^{i−1}) ≈ λ_i (Eq. 1).

    With ``orthogonal`` each ε̃ is one draw, made orthogonal to ε^{i−1}; clips of any length stay standard normal.
    Otherwise it is the best of ``candidates``, as in the paper. That search prefers candidates that resemble the
    previous frame, which adds up: with 10 of them, λ 0.1 and 4 × 8 × 8 values, frame 64 has an excess kurtosis of 12.

    ``first`` is frame 0, standard normal, of shape S; ``draw(i, n)`` n candidates ε̃ for frame i, (n, *S).
    ``kl`` holds λ_i in nats for every frame, that of frame 0 unused: 0 repeats the previous frame, and
    ``INDEPENDENT[divergence]`` or more is i.i.d. noise. Each frame is made from those before it alone. ValueError for
    unknown names, and where :func:`require_reached` says so.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"Unknown divergence {divergence!r}: choose one of {', '.join(DIVERGENCES)}.")
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}.")
    if solver == "line_search":
        for target in dict.fromkeys(kl[1:]):
            require_reached(target, divergence, line_iterations)
    independent = INDEPENDENT[divergence]
    frame = first
    yield frame
    for index, target in enumerate(kl[1:], start=1):
        if target >= independent:
            frame = draw(index, 1)[0]
        elif target > 0:
            from_previous = Divergence(divergence, frame)
            if orthogonal:
                candidate = made_orthogonal(draw(index, 1)[0], frame)
            else:
                candidate = min(draw(index, candidates), key=lambda frame: abs(from_previous(frame) - target))
            curve = from_previous.along(candidate)
            if solver == "bisection":
                alpha = bisection(curve, target)
            elif solver == "line_search":
                alpha = line_search(curve, target, line_iterations)
            else:
                exact = orthogonal and divergence == "pointwise"
                alpha = closed_form(target, from_previous.level if exact else independent)
            frame = blend(frame, candidate, alpha)
        yield frame


def require_reached(kl: float, divergence: str, line_iterations: int) -> None:
    """ValueError where ``line_search`` would end at more than ``REACHED`` times ``kl``, in expectation."""
    independent = INDEPENDENT[divergence]
    if not 0 < kl < independent:
        return

    def expected(alpha: float) -> float:
        return independent * (1 - sqrt(alpha))

    def reached(iterations: int) -> float:
        return expected(line_search(expected, kl, iterations))

    if (end := reached(line_iterations)) > REACHED * kl:
        enough = next((count for count in range(line_iterations, MOST_ITERATIONS) if reached(count) <= 1.1 * kl), None)
        more = "" if enough is None else f"set line_iterations to {enough} or more, or "
        raise ValueError(
            f"kl is {kl:.4g}, but line_search ends at about {end:.3g} in {line_iterations} "
            f"line_iterations. To follow kl, {more}use the solver bisection."
        )
