"""The dependency noise model: each frame's noise lies a chosen KL divergence λ from the frame before.

Zero-shot video sampling (arXiv 2407.21475), §3.1 and Algorithm 1.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from .divergence import DIVERGENCES, INDEPENDENT, Divergence, blend
from .solvers import bisection, closed_form, line_search
from .streams import Draw

SOLVERS = ("bisection", "line_search", "closed_form")

SEARCHED_FRAMES = 16
"""Random search prefers candidates that resemble the previous frame, and over many frames that adds up: with
best of 10, frame 64 has std 1.03 and excess kurtosis 0.3. So later frames take one candidate, unselected."""


def dependency_noise(
    first: Tensor,
    draw: Draw,
    kl: Sequence[float],
    *,
    divergence: str = "generalised",
    solver: str = "bisection",
    candidates: int = 10,
    line_iterations: int = 15,
    searched_frames: int = SEARCHED_FRAMES,
) -> Iterator[Tensor]:
    """Yield the frames ε^i = √α ε^{i−1} + √(1 − α) ε̃, α such that KL(ε^i, ε^{i−1}) ≈ λ_i (Eq. 1).

    ``first`` is frame 0, standard normal, of shape S; ``draw(i, n)`` n candidates ε̃ for frame i, (n, *S).
    ``kl`` holds λ_i in nats for every frame, that of frame 0 unused: 0 repeats the previous frame, and
    ``INDEPENDENT[divergence]`` or more is i.i.d. noise. Each frame is made from those before it alone.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"Unknown divergence {divergence!r}: choose one of {', '.join(DIVERGENCES)}.")
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}.")
    independent = INDEPENDENT[divergence]
    frame = first
    yield frame
    for index, target in enumerate(kl[1:], start=1):
        if target >= independent:
            frame = draw(index, 1)[0]
        elif target > 0:
            from_previous = Divergence(divergence, frame)
            pool = draw(index, candidates if index < searched_frames else 1)
            candidate = min(pool, key=lambda frame: abs(from_previous(frame) - target))
            curve = from_previous.along(candidate)
            if solver == "bisection":
                alpha = bisection(curve, target)
            elif solver == "line_search":
                alpha = line_search(curve, target, line_iterations)
            else:
                alpha = closed_form(target, independent)
            frame = blend(frame, candidate, alpha)
        yield frame
