"""Samplers that draw noise within their steps, drawing it from a clip's noise model.

Ancestral and SDE samplers, and ``lcm``, add fresh noise in a step, independent in every frame: after a few steps
nothing is left of what the frames' first noise had in common. Those that take a ``noise_sampler``, as k-diffusion's
do, are given one that draws the same model's noise, with a seed of each step's own. How a sampler draws is seen in a
rehearsal before the run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from copy import copy
from hashlib import blake2b
from typing import Any, Literal

import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..noise.brownian import BrownianPath
from ..noise.numbers import Told, told_of
from ..noise.streams import frames_axis
from .noises import ClipNoise, GivenNoise, first_frame
from .rehearsal import rehearsed, two_of

Draws = Literal["by noise_sampler", "nothing", "otherwise"]


class NoNoiseSamplerError(ValueError):
    """What a sampler draws within its steps cannot be led, or noise does not follow its seed."""


class CoherentSampler(KSAMPLER):
    """The sampler ``sampler`` with ``noise``'s model within its steps."""

    def __init__(self, sampler: KSAMPLER, noise: Any) -> None:
        super().__init__(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
        self.noise = noise

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        draws = draws_of(self, model_wrap, sigmas, noise)
        if draws == "otherwise":
            raise _cannot_lead(self)
        if draws == "nothing" and len(sigmas) > 2:
            _tell_of_nothing(self)
        sampler = _led(self, StepNoise(self.noise, noise, sigmas) if draws == "by noise_sampler" else None)
        return sampler.sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


def _led(sampler: KSAMPLER, noise_sampler: Callable | None = None) -> KSAMPLER:
    given = {} if noise_sampler is None else {"noise_sampler": noise_sampler}
    return KSAMPLER(sampler.sampler_function, {**sampler.extra_options, **given}, sampler.inpaint_options)


class StepNoise:
    """What k-diffusion calls a noise sampler, for one run that began with the noise ``begun`` at ``sigmas``."""

    def __init__(self, noise: Any, begun: Tensor, sigmas: Tensor) -> None:
        if begun.ndim not in (4, 5):
            raise NoNoiseSamplerError(
                "CoherentSampler: the sampler's latent is packed, as for video with sound; expected a clip without "
                f"sound. It has shape {tuple(begun.shape)}, not (frames, channels, height, width) or (batch, channels, "
                "frames, height, width). For video with sound, use a sampler that draws nothing, such as euler, "
                "without CoherentSampler."
            )
        self._noise, self._like = noise, begun
        self._told = told_of(begun) or Told(first_frame(noise), None)
        self._levels = [float(sigma) for sigma in sigmas]
        self._step, self._draws = self._levels[0], Counter[float]()
        self._path = BrownianPath(self._fresh)

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        return self._path.between(float(sigma), float(sigma_next)).to(self._like)

    def _fresh(self, start: float) -> Tensor:
        """A draw of the step that ``start`` lies in, on the CPU: a step is told by its level, which does not change if
        a run is split."""
        near = min(self._levels, key=lambda level: abs(level - start))
        if abs(near - start) <= 1e-3 * start:
            self._step = near
        seed = step_seed(self._noise.seed, self._step, self._draws[self._step])
        self._draws[self._step] += 1
        return _drawn(reseeded(self._noise, seed), self._like.shape, self._told)


def step_seed(seed: int, level: float, draw: int) -> int:
    """Of the ``draw``-th noise in the step from the noise level ``level``."""
    return int.from_bytes(blake2b(repr((seed, "step", level, draw)).encode(), digest_size=8).digest(), "big")


def reseeded(noise: Any, seed: int) -> Any:
    """Other noise of the same model, of the whole clip."""
    if isinstance(noise, ClipNoise):
        return noise.anew(seed)
    other = copy(noise)
    try:
        other.seed = seed
    except AttributeError as error:
        raise _not_by_seed(noise) from error
    return other


def _drawn(noise: Any, shape: torch.Size, told: Told) -> Tensor:
    """The frames of ``shape`` that ``told`` says, of the whole clip's noise."""
    if frames_axis(shape) == 0:
        numbers = told.numbers(shape[0])
        latent: dict[str, Any] = {"samples": torch.zeros(shape, device="cpu")}
        return noise.generate_noise(latent if numbers == tuple(range(shape[0])) else latent | {"batch_index": numbers})
    batch, channels, frames, *size = shape
    latent = {"samples": torch.zeros(batch, channels, told.start + frames, *size, device="cpu")}
    made = noise.generate_noise(latent if told.indices is None else latent | {"batch_index": told.indices})
    return made[:, :, told.start :]


def require_follows_seed(noise: Any) -> None:
    """NoNoiseSamplerError for NOISE that is the same, or nothing, whatever its seed."""
    if isinstance(noise, GivenNoise):
        raise _not_by_seed(noise)
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    one, other = (reseeded(noise, seed).generate_noise(dict(latent)) for seed in (1, 2))
    if torch.equal(one, other):
        raise _not_by_seed(noise)


def _not_by_seed(noise: Any) -> NoNoiseSamplerError:
    return NoNoiseSamplerError(
        f"noise ({type(noise).__name__}) does not follow its seed, so every step would draw the same. Connect "
        "DependencyNoise, VideoNoisePrior or RandomNoise."
    )


def draws_of(sampler: KSAMPLER, guider: Any, sigmas: Tensor, noise: Tensor) -> Draws:
    """How ``sampler`` draws noise within the steps ``sigmas`` of a run that ``guider`` begins with ``noise``."""
    one, other = two_of(noise)

    def ends_alike(second: Tensor) -> bool:
        """Whether equal halves stay equal where the second draws ``second`` and the first draws ``one``."""
        drawn = torch.cat([one, second])
        try:
            made = rehearsed(_led(sampler, lambda *_: drawn), guider, sigmas, one, one)
        except TypeError as error:  # it takes none
            if "noise_sampler" not in str(error):
                raise
            made = rehearsed(_led(sampler), guider, sigmas, one, one)
        return torch.equal(*made)

    if not ends_alike(one):
        return "otherwise"
    return "nothing" if ends_alike(other) else "by noise_sampler"


def require_leadable(sampler: Any) -> None:
    """NoNoiseSamplerError for a sampler that cannot be given a ``noise_sampler``, or has one."""
    if not isinstance(sampler, KSAMPLER) or "noise_sampler" in sampler.extra_options:
        raise _cannot_lead(sampler)


def _cannot_lead(sampler: Any) -> NoNoiseSamplerError:
    given = getattr(sampler, "extra_options", {})
    if given.get("s_churn"):
        cure = f"its s_churn is {given['s_churn']:g}: set it to 0, or use euler_ancestral"
    else:
        cure = "use euler_ancestral, dpmpp_2m_sde, lcm or another of KSamplerSelect's samplers"
    return NoNoiseSamplerError(
        f"sampler ({_name_of(sampler)}) draws noise in a way that CoherentSampler cannot replace: expected one that "
        f"draws by a noise_sampler, or nothing. For coherent noise within the steps {cure}."
    )


def _tell_of_nothing(sampler: Any) -> None:
    logging.warning(
        "CoherentSampler: the sampler %s draws no noise within its steps, so this node has no effect on it. The clip "
        "keeps the coherence of the noise that it starts from.",
        _name_of(sampler),
    )


def _name_of(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    return type(sampler).__name__ if function is None else getattr(function, "__name__", repr(function))
