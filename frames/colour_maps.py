"""Statistics of a frame's colours, and the maps that move one frame's to another's.

A colour is a vector of channels, CIELAB's or a latent's. Three ways to get from a frame's statistics to a target's:

    mean_std    y_c = m_c + (s_c / σ_c) (x_c − μ_c), channel by channel (Reinhard et al. 2001, "Color Transfer between
                Images")
    covariance  y = m + A (x − μ), A = Σ^-½ (Σ^½ S Σ^½)^½ Σ^-½: the linear map that moves colours the least (Pitié &
                Kokaram 2007, "The linear Monge-Kantorovitch colour mapping")
    histogram   y_c = G_c⁻¹(F_c(x_c)), channel by channel: the rising map that gives every quantile its counterpart

μ, σ, Σ, F are averaged over neighbouring frames (:mod:`.running`), so that what moves into a picture does not make its
colours flicker; m, s, S, G are those of all reference frames as one picture. The first two stretch no channel, and no
direction of colour, by more than ``MOST_GAIN``: what is flat holds nothing but noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .running import running_average

LEVELS = 1024
"""Quantiles that stand for a histogram."""
MOST_GAIN = 5.0
FLAT = 1e-4
"""Standard deviation that counts as none: a ten thousandth of the way from black to white."""


class Statistics(ABC):
    """What is measured of a frame's colours, as a vector of float64 on the CPU, and the map between two of them.

    ``x``: (channels, pixels). ``weights``: (pixels,) of 0 or more, not all 0.
    """

    @abstractmethod
    def measure(self, x: Tensor, weights: Tensor) -> Tensor: ...

    @abstractmethod
    def pooled(self, measured: Tensor) -> Tensor:
        """Of frames (frames, n) as one picture: (n,)."""

    @abstractmethod
    def averaged(self, measured: Tensor, momentum: float) -> Tensor:
        """Over neighbouring frames: (frames, n)."""

    @abstractmethod
    def moved(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """``x`` under the map that moves colours measured as ``source`` to ``target``."""


class Covariance(Statistics):
    """Means (channels), then the covariance matrix."""

    def measure(self, x: Tensor, weights: Tensor) -> Tensor:
        weights = weights / weights.sum()
        mean = x @ weights
        centred = x - mean[:, None]
        return self._vector(mean, (centred * weights) @ centred.mT)

    def pooled(self, measured: Tensor) -> Tensor:
        means, spreads = self._parts(measured)
        mean = means.mean(0)
        off = means - mean
        return self._vector(mean, spreads.mean(0) + off.mT @ off / len(off))

    def averaged(self, measured: Tensor, momentum: float) -> Tensor:
        """Of matrices the square roots: they change by as much as colours do, and no spread falls below 0."""
        means, spreads = self._parts(measured)
        roots = running_average(self._root(spreads), momentum)
        return self._vector(running_average(means, momentum), roots @ roots)

    def moved(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        (mean, spread), (wanted_mean, wanted) = self._parts(source), self._parts(target)
        gain = self._gain(spread, wanted).to(x)
        return gain @ (x - mean.to(x)[:, None]) + wanted_mean.to(x)[:, None]

    def _vector(self, mean: Tensor, spread: Tensor) -> Tensor:
        return torch.cat([mean, spread.flatten(-2)], dim=-1).to("cpu", torch.float64)

    def _parts(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        channels = round((measured.shape[-1] + 0.25) ** 0.5 - 0.5)  # n = c + c²
        mean, spread = measured.split([channels, channels**2], dim=-1)
        return mean, spread.unflatten(-1, (channels, channels))

    def _root(self, spread: Tensor) -> Tensor:
        return _of_matrix(spread, torch.sqrt)

    def _gain(self, spread: Tensor, wanted: Tensor) -> Tensor:
        root, back = _of_matrix(spread, torch.sqrt), _of_matrix(spread, torch.rsqrt)
        inner = _of_matrix(root @ _of_matrix(wanted, lambda x: x) @ root, torch.sqrt, least=0.0)
        return _of_matrix(back @ inner @ back, lambda gains: gains.clamp(max=MOST_GAIN), least=0.0)


class MeanStd(Covariance):
    """The same with the diagonal alone."""

    def _root(self, spread: Tensor) -> Tensor:
        return torch.diag_embed(_diagonal(spread).sqrt())

    def _gain(self, spread: Tensor, wanted: Tensor) -> Tensor:
        return torch.diag_embed((_diagonal(wanted) / _diagonal(spread)).sqrt().clamp(max=MOST_GAIN))


class Histogram(Statistics):
    """The values at ``LEVELS`` even quantiles, channel by channel."""

    _levels = (torch.arange(LEVELS, dtype=torch.float64, device="cpu") + 0.5) / LEVELS

    def measure(self, x: Tensor, weights: Tensor) -> Tensor:
        counted = weights > 0
        values, order = x[:, counted].sort(dim=-1)
        shares = weights[counted][order].to("cpu", torch.float64)
        return self._quantiles(values.to("cpu", torch.float64), shares).flatten()

    def pooled(self, measured: Tensor) -> Tensor:
        """By the quantiles of all frames, each for as many pixels."""
        values = measured.unflatten(-1, (-1, LEVELS)).movedim(0, -2).flatten(-2).sort(dim=-1).values
        return self._quantiles(values, torch.ones_like(values)).flatten()

    def averaged(self, measured: Tensor, momentum: float) -> Tensor:
        """Quantile by quantile, as one moves from a histogram to another; a line may cross its neighbour."""
        return running_average(measured, momentum).unflatten(-1, (-1, LEVELS)).sort(dim=-1).values.flatten(-2)

    def moved(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        pairs = zip(x, source.unflatten(0, (-1, LEVELS)), target.unflatten(0, (-1, LEVELS)), strict=True)
        return torch.stack([self._channel(*each) for each in pairs])

    def _quantiles(self, values: Tensor, shares: Tensor) -> Tensor:
        """At ``_levels``, of ``values`` (channels, n) in rising order that count as their ``shares``."""
        places = (shares.cumsum(-1) - shares / 2) / shares.sum(-1, keepdim=True)
        return _interpolated(self._levels.expand(len(values), -1), places, values)

    def _channel(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Levels of one value, as in a plain background, go to the mean of their counterparts."""
        knots, group = source.unique_consecutive(return_inverse=True)
        counterparts = torch.zeros_like(knots).index_add_(0, group, target) / group.bincount()
        inner = _interpolated(x[None], knots.to(x)[None], counterparts.to(x)[None])[0]
        ends = [(counterparts[end] - knots[end]).to(x) for end in (0, -1)]
        outer = torch.where(x < knots[0], x + ends[0], x + ends[1])
        return torch.where((x < knots[0]) | (x > knots[-1]), outer, inner)


STATISTICS: dict[str, Statistics] = {"mean_std": MeanStd(), "covariance": Covariance(), "histogram": Histogram()}
METHODS = tuple(STATISTICS)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).clamp(min=FLAT**2)


def _of_matrix(matrices: Tensor, function: Callable[[Tensor], Tensor], least: float = FLAT**2) -> Tensor:
    """``function`` of symmetric matrices, by their eigenvalues, which count as ``least`` at the least."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    return (vectors * function(values.clamp(min=least))[..., None, :]) @ vectors.mT


def _interpolated(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Of each row, at ``x`` (rows, n), the line through ``values`` at rising ``knots`` (rows, k); constant outside."""
    last = knots.shape[-1] - 1
    right = torch.searchsorted(knots, x.contiguous()).clamp(max=last)
    left = (right - 1).clamp(min=0)
    (a, b), (low, high) = ([each.gather(-1, place) for place in (left, right)] for each in (knots, values))
    return torch.lerp(low, high, torch.where(b > a, (x - a) / (b - a), 1.0).clamp(0, 1))
