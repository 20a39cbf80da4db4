"""Samplers that draw noise within their steps, drawing it from a clip's noise model.

Ancestral and SDE samplers, and ``lcm``, add fresh noise in a step, independent in every frame: after a few steps
nothing is left of what the frames' first noise had in common. Those that take a ``noise_sampler``, as k-diffusion's
do, are given one that draws the same model's noise, with a seed of each step's own.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from hashlib import blake2b
from types import CodeType
from typing import Any, Literal

import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..noise.brownian import BrownianPath
from ..noise.numbers import Told, told_of
from ..noise.streams import frames_axis
from .noises import ClipNoise, GivenNoise, first_frame

Draws = Literal["by noise_sampler", "nothing", "otherwise"]
_DRAWING = re.compile(r"rand|randn|rand_like|randn_like|normal_?|default_noise_sampler|BrownianTree\w*")
_WITHOUT_ETA = {"sample_res_multistep", "sample_res_multistep_cfg_pp"}
"""Those of ComfyUI that take a noise_sampler and give what it draws no weight."""


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
        draws = StepNoise(self.noise, noise, sigmas)
        options = {**self.extra_options, "noise_sampler": draws}
        sampler = KSAMPLER(self.sampler_function, options, self.inpaint_options)
        samples = sampler.sample(
            model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )
        if not draws.count and len(sigmas) > 2:
            tell_of_nothing(self)
        return samples


class StepNoise:
    """What k-diffusion calls a noise sampler, for one run that began with the noise ``begun`` at ``sigmas``.

    ``count``: of the draws so far.
    """

    def __init__(self, noise: Any, begun: Tensor, sigmas: Tensor) -> None:
        if begun.ndim not in (4, 5):
            raise NoNoiseSamplerError(
                f"CoherentSampler: the sampler's latent has shape {tuple(begun.shape)}, expected (frames, channels, "
                "height, width) or (batch, channels, frames, height, width). For video with sound, use a sampler that "
                "draws nothing, such as euler, without CoherentSampler."
            )
        self._noise, self._like = noise, begun
        self._told = told_of(begun) or Told(first_frame(noise), None)
        self._levels = [float(sigma) for sigma in sigmas]
        self._step, self._draws = self._levels[0], Counter[float]()
        self._path = BrownianPath(self._fresh)
        self.count = 0

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        self.count += 1
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


def draws_of(sampler: Any) -> Draws:
    """How a SAMPLER draws noise within its steps."""
    if not isinstance(sampler, KSAMPLER) or "noise_sampler" in sampler.extra_options:
        return "otherwise"
    function, options = sampler.sampler_function, sampler.extra_options
    parameters = inspect.signature(function).parameters
    defaults = {name: each.default for name, each in parameters.items()}
    is_core = str(getattr(function, "__module__", "")).startswith("comfy.")
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if "noise_sampler" in parameters or (takes_any and is_core):
        default = 0.0 if takes_any or getattr(function, "__name__", "") in _WITHOUT_ETA else 1.0
        eta, amount = options.get("eta", defaults.get("eta", default)), options.get("s_noise", 1.0)
        return "by noise_sampler" if eta and amount else "nothing"
    if "s_churn" in parameters:
        return "otherwise" if options.get("s_churn", defaults["s_churn"]) else "nothing"
    code = _code_of(function)
    if takes_any or code is None:
        return "otherwise"
    looked_at = [code, *([] if is_core else _helpers_of(function, code))]
    draws = any(_DRAWING.fullmatch(name) for each in looked_at for name in _names_in(each))
    return "otherwise" if draws else "nothing"


def require_leadable(sampler: Any) -> None:
    """NoNoiseSamplerError for a sampler that draws otherwise than by a ``noise_sampler``."""
    if draws_of(sampler) != "otherwise":
        return
    given = getattr(sampler, "extra_options", {})
    if given.get("s_churn"):
        cure = f"its s_churn is {given['s_churn']:g}: set it to 0, or use euler_ancestral"
    else:
        cure = "use euler_ancestral, dpmpp_2m_sde, lcm or another of KSamplerSelect's samplers"
    raise NoNoiseSamplerError(
        f"sampler ({name_of(sampler)}) draws noise in a way that this node cannot replace, or its code does not show "
        f"whether it draws: expected one that takes a noise_sampler. For coherent noise within the steps {cure}."
    )


def tell_of_nothing(sampler: Any) -> None:
    logging.warning(
        "CoherentSampler: the sampler %s draws no noise within its steps, so this node has no effect on it. The clip "
        "keeps the coherence of the noise that it starts from.",
        name_of(sampler),
    )


def name_of(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    return type(sampler).__name__ if function is None else getattr(function, "__name__", repr(function))


def _code_of(function: Any) -> CodeType | None:
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)


def _names_in(code: CodeType) -> Iterator[str]:
    """What the code, and functions within it, call or read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _helpers_of(function: Any, code: CodeType) -> Iterator[CodeType]:
    """The code of functions of the same module that ``function`` calls."""
    there = getattr(inspect.unwrap(function), "__globals__", {})
    for name in _names_in(code):
        helper = there.get(name)
        if inspect.isfunction(helper) and helper.__globals__ is there:
            yield helper.__code__
