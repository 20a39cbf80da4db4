"""An inversion's latents of every noise level, and a source that is set to them: the target attends to the real clip.

An inversion only approximates the noise of a clip, so sampling back misses it. With the latents of every level kept,
the source's branch is not sampled: at each model call it is set to the latent that the inversion had at that noise
level. (Video-P2P and FateZero, arXiv 2303.09535, keep these latents, too.) Between two levels the inversion went
straight, in the sampler's space, so a solver's substeps find their latents there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER, Sampler
from torch import Tensor

from ..attention.carrying import model_facts
from ..techniques.kept import gibibytes, of_size, same_level


class TrajectoryError(ValueError):
    """A trajectory does not fit a run, or could not be kept."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """``sigmas``: the levels, falling; ``latents``: at each of them, in the sampler's space, on the CPU; ``clip``: the
    inverted LATENT's samples as they were; ``model``: what tells the model (:func:`..attention.carrying.model_facts`).
    """

    model: str
    sigmas: tuple[float, ...]
    latents: tuple[Tensor, ...]
    clip: Tensor

    @classmethod
    def of(cls, model: ModelPatcher, sigmas: Tensor, rising: Sequence[Tensor], clip: Tensor) -> Trajectory:
        """TrajectoryError where half precision cannot hold the latents, which come from the clean one on."""
        for level, latent in enumerate(rising):
            if not latent.isfinite().all():
                raise TrajectoryError(
                    f"keep_trajectory: fp16 holds values up to 65504, and the latent at noise level "
                    f"{sigmas[-1 - level]:.5g} goes beyond it. Choose fp32."
                )
        levels = tuple(float(sigma) for sigma in sigmas)
        return cls(model_facts(model), levels, (*reversed(rising),), clip.detach().to("cpu", copy=True))

    def said(self) -> str:
        """For the log."""
        size = sum(latent.nbytes for latent in (*self.latents, self.clip))
        return (
            f"trajectory of {len(self.sigmas) - 1} steps, latent {of_size(self.clip.shape)}: {gibibytes(size)} of RAM"
        )


NOTHING = Trajectory("", (), (), torch.zeros(1))
"""Where no trajectory was to be kept."""


def size_of(samples: Tensor, sigmas: Tensor, dtype: torch.dtype) -> str:
    """Of the trajectory of an inversion of ``samples``, for the log, beforehand."""
    return gibibytes(samples.numel() * dtype.itemsize * len(sigmas) + samples.nbytes)


class Pinned:
    """The source of one run along ``sigmas``. TrajectoryError where the trajectory does not fit the run."""

    def __init__(self, kept: Trajectory, model: ModelPatcher, sigmas: Tensor, shape: Sequence[int]) -> None:
        self._kept = kept
        if not kept.latents:
            raise TrajectoryError(
                "trajectory is empty, because keep_trajectory of BilateralDDIMInvert is off. Choose fp32 or fp16 there."
            )
        here = model_facts(model)
        if kept.model != here:
            raise TrajectoryError(
                f"trajectory was kept with another model: {kept.model}, this one is {here}. Connect the model of "
                "BilateralDDIMInvert, or invert with this one; of two experts, each needs an inversion of its own."
            )
        if tuple(kept.clip.shape) != tuple(shape):
            raise TrajectoryError(
                f"trajectory was kept of a latent of {of_size(kept.clip.shape)}, but latent_image has "
                f"{of_size(shape)}. Connect the latent of the same BilateralDDIMInvert."
            )
        levels = [float(sigma) for sigma in sigmas]
        if self._place_of(levels) is None:
            raise TrajectoryError(
                f"trajectory was kept along {_levels(kept.sigmas)}, but sigmas are {_levels(levels)}. Connect the same "
                "sigmas to BilateralDDIMInvert, or a part of them from SplitSigmas."
            )
        self._last = levels[-1]

    def at(self, sigma: float, like: Tensor) -> Tensor:
        """The source's latents at a noise level."""
        x, _ = self._line(sigma, like)
        return x

    def denoised(self, sigma: float, like: Tensor) -> Tensor:
        """What leads from there to the next level."""
        x, slope = self._line(sigma, like)
        return x - slope * sigma

    def end(self, model: ModelPatcher, sampler: Sampler, like: Tensor) -> Tensor:
        """The samples of the source's LATENT after the run, of which ``like`` are what the sampler has."""
        if same_level(self._last, self._kept.sigmas[-1]):
            return self._kept.clip.to(like)
        if not isinstance(sampler, KSAMPLER):  # with a space of its own
            return like
        sampling, last = model.get_model_object("model_sampling"), torch.tensor(self._last)
        x = sampling.inverse_noise_scaling(last, self.at(self._last, like))
        return model.get_model_object("process_latent_out")(x)

    def _place_of(self, levels: Sequence[float]) -> int | None:
        """Where ``levels`` stand among those kept."""
        kept = self._kept.sigmas
        starts = range(len(kept) - len(levels) + 1)
        return next((n for n in starts if all(map(same_level, kept[n:], levels))), None)

    def _line(self, sigma: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """The latents at ``sigma``, and dx/dσ there."""
        kept, levels = self._kept.latents, self._kept.sigmas
        spans = [n for n, (high, low) in enumerate(pairwise(levels)) if high > low]
        start = max((n for n in spans if levels[n] >= sigma or same_level(levels[n], sigma)), default=spans[0])
        high, low = (kept[n].to(like) for n in (start, start + 1))
        slope = (high - low) / (levels[start] - levels[start + 1])
        if same_level(levels[start], sigma):
            return high, slope
        return high + slope * (min(max(sigma, levels[start + 1]), levels[start]) - levels[start]), slope


def _levels(levels: Sequence[float]) -> str:
    shown = [f"{level:.4g}" for level in levels]
    return f"{len(levels) - 1} steps ({', '.join(shown if len(shown) < 9 else [*shown[:6], '…', shown[-1]])})"
