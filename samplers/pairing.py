"""One sampler for two clips: source and target take the same steps, so that they can be denoised together.

The sampler is not aware of this: it processes one latent, the source's rows before the target's. That is correct as
long as it treats every value independently. Noise that it draws within its steps (ancestral and SDE samplers, ``lcm``)
is drawn once, as for the source alone, and given to both clips; of a Brownian path there is one.

A rehearsal on a few values checks this before the run, with a denoiser that costs nothing: two equal halves must stay
equal (otherwise the sampler draws noise elsewhere), and the first must not depend on the second (otherwise its steps
do).
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, Protocol

import torch
from comfy.samplers import KSAMPLER, Sampler
from torch import Tensor

from .coherent import CoherentSampler
from .rehearsal import random_state_kept, rehearsal_args, rehearsed, two_of

NoiseSampler = Callable[[Any, Any], Tensor]
"""What k-diffusion's samplers ask for noise between two noise levels."""
_NOISE_SAMPLER = "noise_sampler"


class PairGuider(Protocol):
    """What denoises the two: ComfyUI's guider, told when its conditionings are ready, who samples and with which
    model options."""

    inner_model: Any

    def pair_branches(self, sampler: Sampler, options: dict[str, Any]) -> None: ...

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor: ...


class _Start(NamedTuple):
    """What a SAMPLER is given besides the guider: of one clip."""

    sigmas: Tensor
    extra_args: dict[str, Any]
    noise: Tensor
    latent_image: Tensor | None
    denoise_mask: Tensor | None


def _both(x: Tensor | None, other: Tensor | None = None) -> Tensor | None:
    return None if x is None else torch.cat([x, x if other is None else other])


@dataclass(eq=False)
class PairSampler(Sampler):
    """A SAMPLER that starts ``sampler`` on two clips; returns (2 · rows, …), the source before the target.

    Both begin with the same noise, and at the same latent unless the target has one of its own. ValueError where
    ``sampler`` cannot take the same steps with both. Previews show the target.
    """

    sampler: Sampler
    target: Tensor | None = None

    def sample(
        self,
        model_wrap: PairGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        if self.target is not None and not isinstance(self.sampler, KSAMPLER):
            raise ValueError(
                f"sampler: {_name(self.sampler)} may start from the noise alone, so the edit cannot continue from "
                "target_latent. Use euler or another of KSamplerSelect's samplers."
            )
        start = _Start(sigmas, extra_args, noise, latent_image, denoise_mask)
        _require_keeps_pairs(self.sampler, model_wrap, start)
        with random_state_kept(noise):
            sampler = _drawing_for_both(self.sampler, model_wrap, start)
        model_wrap.pair_branches(self.sampler, extra_args["model_options"])

        def on_target(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            callback(step, denoised.chunk(2)[1], x.chunk(2)[1], total)

        target = None if self.target is None else self.target.to(noise)
        if target is not None and target.any():  # as ComfyUI does it with the source's
            target = model_wrap.inner_model.process_latent_in(target)
        latents = _both(noise), _both(latent_image, target), _both(denoise_mask)
        return sampler.sample(model_wrap, sigmas, extra_args, callback and on_target, *latents, disable_pbar)


def _name(sampler: Sampler) -> str:
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
    return name.removeprefix("sample_").removesuffix("_function")


# Noise within the steps ----------------------------------------------------------------------------------------


class _Stop(BaseException):
    """Ends a run at its first model call. Nothing that catches errors may catch it."""


@dataclass(frozen=True)
class _Stopping:
    """The guider as samplers see it, up to its first call."""

    guider: PairGuider

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guider, name)

    def __call__(self, *_args: Any, **_kwargs: Any) -> Tensor:
        raise _Stop


def _drawing_for_both(sampler: Sampler, guider: Any, start: _Start) -> Sampler:
    """``sampler`` for two clips, with the noise that it would draw for one."""
    if type(sampler).sample is not KSAMPLER.sample and not isinstance(sampler, CoherentSampler):
        return sampler  # with steps of its own
    function, options, inpainting = sampler.sampler_function, sampler.extra_options, sampler.inpaint_options
    if _takes_noise_sampler(function):
        drawn = _noise_sampler_of(sampler, guider, start)
        options = options if drawn is None else {**options, _NOISE_SAMPLER: _twice(drawn)}
    if inpainting.get("random", False) and start.denoise_mask is not None:  # ``ddim``, outside a noise mask
        function = _with_noise_outside(function, start.noise, start.extra_args.get("seed", 41) + 1)
    return KSAMPLER(function, options, inpainting)


def _takes_noise_sampler(function: Callable) -> bool:
    try:
        return _NOISE_SAMPLER in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable that does not say
        return False


def _noise_sampler_of(sampler: Sampler, guider: Any, start: _Start) -> NoiseSampler | None:
    """What ``sampler`` draws with for one clip. Which that is, its function alone knows; it is there before the model
    is called, so the run may end then."""
    sigmas, extra_args, *latents = start
    try:
        sampler.sample(_Stopping(guider), sigmas, dict(extra_args), None, *latents, disable_pbar=True)
    except _Stop as stop:
        found = [frame.f_locals.get(_NOISE_SAMPLER) for frame, _ in traceback.walk_tb(stop.__traceback__)]
        return next(filter(None, reversed(found)), None)
    return None


def _twice(drawn: NoiseSampler) -> NoiseSampler:
    def draw(sigma: Any, sigma_next: Any) -> Tensor:
        noise = drawn(sigma, sigma_next)
        return torch.cat([noise, noise])

    return draw


def _with_noise_outside(function: Callable, like: Tensor, seed: int) -> Callable:
    """``function`` with the noise that ComfyUI draws for one clip outside a noise mask."""

    @wraps(function)
    def sample(model: Any, *args: Any, **kwargs: Any) -> Tensor:
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
        model.noise = _both(noise.to(like))
        return function(model, *args, **kwargs)

    return sample


def _require_keeps_pairs(sampler: Sampler, guider: PairGuider, start: _Start) -> None:
    """ValueError, with the reason, where ``sampler`` would not take the same steps with both clips."""
    one, other = two_of(start.noise)
    masked = start.denoise_mask is not None
    clip = _Start(
        start.sigmas,
        rehearsal_args(start.sigmas),
        one,
        torch.zeros_like(one),
        torch.full_like(one, 0.5) if masked else None,
    )

    def rehearse(second: Tensor) -> tuple[Tensor, Tensor]:
        with random_state_kept(one):
            led = _drawing_for_both(sampler, guider, clip)  # anew: what draws noise goes on from where it is
        return rehearsed(led, guider, start.sigmas, one, second, masked=masked)

    alike, apart = rehearse(one), rehearse(other)
    cure = "Choose another sampler, such as euler, dpmpp_2m, euler_ancestral or lcm."
    if not torch.equal(*alike):
        raise ValueError(
            f"sampler: {_name(sampler)} draws noise in a way that cannot be shared (s_churn above 0, or its own "
            f"random numbers), so source and target would get different noise and diverge. {cure}"
        )
    if not torch.equal(alike[0], apart[0]):
        raise ValueError(
            f"sampler: {_name(sampler)} adapts its steps to the latents, so the target would change the steps of the "
            f"source. {cure}"
        )
