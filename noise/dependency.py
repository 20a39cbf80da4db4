"""The dependency noise model: each frame's noise lies a chosen KL divergence λ from the frame before.

Zero-shot video sampling (arXiv 2407.21475), §3.1 and Algorithm 1.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from .divergence import INDEPENDENT, Divergence, blend
from .solvers import bisection, closed_form, line_search
from .streams import Draw

SOLVERS = ("bisection", "line_search", "closed_form")

SEARCHED_FRAMES = 16
"""Random search prefers candidates that resemble the previous frame. Over many frames that adds up (best of
10 at frame 64: std 1.03, excess kurtosis +0.3), so frames after this one take their first candidate,
unselected.
"""


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

    ``first``: frame 0, of shape S, standard normal. ``draw(i, n)``: n candidates ε̃ for frame i, shape (n,
    *S).
    ``kl``: λ_i in nats for each frame (that of frame 0 is not used); 0 repeats the previous frame, and
    ``INDEPENDENT[divergence]`` or more is i.i.d. noise. Frames are made one at a time, each from those before
    it only.
    """
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}.")
    frame = first
    yield frame
    for index in range(1, len(kl)):
        target = float(kl[index])
        if target <= 0:
            yield frame
            continue
        pool = draw(index, candidates if index < searched_frames else 1)
        if target >= INDEPENDENT[divergence]:
            frame = pool[0]
            yield frame
            continue
        from_previous = Divergence(divergence, frame)
        candidate = pool[0] if len(pool) == 1 else pool[(from_previous(pool) - target).abs().argmin()]
        if solver == "closed_form":
            alpha = closed_form(target, INDEPENDENT[divergence])
        elif solver == "line_search":
            alpha = line_search(from_previous.along(candidate), target, line_iterations)
        else:
            alpha = bisection(from_previous.along(candidate), target)
        frame = blend(frame, candidate, alpha)
        yield frame
