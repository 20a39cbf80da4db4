"""What a clip looks like, frame by frame, and how fast that drifts: the slope of a line, with its 95% interval.

Neighbouring frames are alike: an interval that takes them for independent ones is too narrow, several times so. Here
what is left of the line is an autoregression of order 1, e_t = φ e_{t−1} + ε_t, whose φ in [0, 1) is not known either.
For a given φ the slope is Student's t about its generalised least squares estimate; the interval is that of the mixture
over φ, each weighted by its restricted likelihood (Harville 1974, "Bayesian inference for variance components using
only error contrasts"), all φ being equally likely beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

PER = 100
"""Frames that a drift is told for."""
FEWEST = 4
"""Frames below which a slope has no interval."""
PLAIN = 1e-6
"""Mean square of a step of L* from pixel to pixel below which a picture shows nothing but rounding."""
CORRELATIONS = 60
"""Values of φ that stand for all."""


@dataclass(frozen=True)
class Look:
    """Figures of every frame, each (F,) float64."""

    lightness: Tensor
    """Mean L* of CIELAB, 0 to 100."""
    contrast: Tensor
    """Standard deviation of L*."""
    saturation: Tensor
    """Mean chroma, √(a*² + b*²), of CIELAB: 0 for grey, about 130 at most."""
    sharpness: Tensor
    """How narrow edges are, per pixel: the root mean square of L*'s second differences, of that of its first ones.
    Neither contrast nor the number of edges changes it; noise raises it. NaN for plain pictures."""


class Drift(NamedTuple):
    """Change per ``PER`` frames, and its 95% interval, NaN where there are too few frames."""

    value: float
    low: float
    high: float


def look(
    images: Tensor, device: torch.device | str | None = None, progress: Callable[[], object] = lambda: None
) -> Look:
    """Of a clip (F, H, W, 3), RGB in [0, 1]; frames go to ``device`` one by one."""
    rows = []
    for frame in images.split(1):
        rows.append(_figures(frame.to(device, torch.promote_types(frame.dtype, torch.float32))))
        progress()
    return Look(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def drifts(seen: Look) -> dict[str, Drift]:
    return {field.name: drift(getattr(seen, field.name)) for field in fields(seen)}


def drift(values: Tensor) -> Drift:
    """Of what was measured frame by frame, (F,); NaN if a frame was not measured, or there is one frame alone."""
    count = len(values)
    if count < 2 or not values.isfinite().all():
        return Drift(math.nan, math.nan, math.nan)
    slopes, errors, weights = _slopes(values.double().cpu())
    value = float(weights @ slopes)
    low, high = _interval(slopes, errors, weights, count - 2) if count >= FEWEST else (math.nan, math.nan)
    return Drift(PER * value, PER * low, PER * high)


def seam_jumps(steps: dict[str, Tensor], seams: Iterable[int]) -> dict[str, dict[str, dict[str, float]]]:
    """At each of ``seams``, the first frame of a run: every figure of the step to it, beside the other steps'.

    ``steps``: name → (F − 1,), the size of each step between neighbours. ``jump``: that of the step; ``others``: the
    median of all steps that lead to no seam; ``ratio``: of the two.
    """
    seams = list(seams)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for seam in seams:
        found[str(seam)] = {}
        for name, sizes in steps.items():
            others = torch.ones_like(sizes, dtype=torch.bool)
            others[[each - 1 for each in seams]] = False
            jump, usual = sizes[seam - 1].item(), sizes[others].nanmedian().item() if others.any() else math.nan
            ratio = jump / usual if usual > 0 else math.nan
            found[str(seam)][name] = {"jump": jump, "others": usual, "ratio": ratio}
    return found


def _figures(frame: Tensor) -> list[float]:
    from kornia.color import rgb_to_lab

    lightness, a, b = rgb_to_lab(frame.movedim(-1, 1).clamp(0, 1))[0]
    first = sum(lightness.diff(dim=axis).square().mean() for axis in (0, 1) if lightness.shape[axis] > 1)
    second = sum(lightness.diff(n=2, dim=axis).square().mean() for axis in (0, 1) if lightness.shape[axis] > 2)
    sharpness = float(second / first) ** 0.5 if float(first) > PLAIN else math.nan
    return [lightness.mean().item(), lightness.std(correction=0).item(), torch.hypot(a, b).mean().item(), sharpness]


def _slopes(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each φ: the slope, its standard error, and the weight of that φ."""
    count = len(values)
    time = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    rows = torch.stack([torch.ones_like(time), time, values - values.mean()])  # both regressors, and what they explain
    phis = (torch.arange(CORRELATIONS, dtype=torch.float64) + 0.5) / CORRELATIONS
    first = (1 - phis**2).sqrt()[:, None, None] * rows[:, :1]
    white = torch.cat([first, rows[:, 1:] - phis[:, None, None] * rows[:, :-1]], dim=-1)
    x, y = white[:, :2], white[:, 2:]
    normal = x @ x.mT
    inverse = torch.linalg.inv(normal)
    both = inverse @ x @ y.mT
    rest = (y - both.mT @ x).square().sum((1, 2))
    scale = values.var(correction=0) * 1e-24 + 1e-300
    freedom = max(count - 2, 1)
    likelihood = (1 - phis**2).log() - torch.logdet(normal) - freedom * (rest + scale).log()
    weights = torch.softmax(likelihood / 2, dim=0)
    return both[:, 1, 0], (inverse[:, 1, 1] * rest / freedom).sqrt(), weights


def _interval(slopes: Tensor, errors: Tensor, weights: Tensor, freedom: int) -> tuple[float, float]:
    """The middle 95% of a mixture of Student's t."""
    from scipy import optimize, stats

    if float(weights @ errors) <= 1e-12 * float(slopes.abs().max()) + 1e-300:
        return float(weights @ slopes), float(weights @ slopes)
    places, scales, shares = (each.numpy() for each in (slopes, errors, weights))
    reach = float(stats.t.ppf(1 - 1e-9, freedom)) * float(scales.max())
    ends = float(places.min()) - reach, float(places.max()) + reach

    def quantile(level: float) -> float:
        return optimize.brentq(lambda x: shares @ stats.t.cdf((x - places) / scales, freedom) - level, *ends)

    return quantile(0.025), quantile(0.975)
