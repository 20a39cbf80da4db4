"""DDIM inversion with a bilateral filter: from a clean clip to the noise that a model would draw it from.

GE-Adapter §3.2. Its Eq. 12, as printed, removes noise and adds new noise, so it cannot be inverted; it is kept as
``literal``, for study. The other modes invert DDIM:

    x_{t+1} = √ᾱ_{t+1} x̂₀(x′_t) + √(1 − ᾱ_{t+1}) ε(x′_t, t),   x′ the filtered latent

which in ComfyUI's terms, x = x₀ + σε with the denoiser D, is an Euler step along dx/dσ = (x − D(x, σ)) / σ towards
more noise. Flow models take the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Any, Literal, get_args

import torch
from comfy.model_management import intermediate_device
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.samplers import CFGGuider, Sampler
from latent_preview import prepare_callback
from torch import Tensor

from ..attention.bilateral import TemporalBilateral, last_decoder_level
from ..attention.sites import sites_of
from ..attention.tap import tap
from ..frames.bilateral import bilateral_spatial, restandardised
from ..frames.streams import of_level
from ..noise.streams import Indices, frames_axis, plain_noise
from .finite import require_finite_prediction
from .latents import input_scale, model_scale, require_levels, samples_for
from .noises import frame_numbers
from .trajectory import Trajectory, size_of
from .unfit import explain_unfit_inputs

Mode = Literal["latent_spatial", "feature_temporal", "none", "literal"]
MODES = get_args(Mode)

Slope = Callable[[Tensor, int], Tensor]
"""dx/dσ at a latent x and a level, counted from 0, the clean end."""
Smooth = Callable[[Tensor, int], Tensor]
"""The filter, at a latent and a level."""


@dataclass(frozen=True)
class Step:
    """A step that was taken, to ``level``: ``x`` is where the next one starts, ``slope`` is dx/dσ there.

    ``drift``: by how much a sampling step back from there misses the latent that this step came from, relative to it;
    None where that was zero.
    """

    level: int
    x: Tensor
    slope: Tensor
    drift: float | None


def invert(
    x: Tensor,
    sigmas: Tensor,
    slope: Slope,
    smooth: Smooth = lambda x, level: x,
    refine_iterations: int = 0,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """DDIM inversion of the clean ``x`` along rising ``sigmas`` (steps + 1,); steps · (1 + refinements) + 1 slopes.

    A plain step takes the slope where it starts, a sampling step that comes back the slope where this one ends. With
    refinement the latter is sought: x = x_start + slope(x)·Δσ, which sampling brings back exactly.
    """
    x = smooth(x, 0)
    rate = slope(x, 0)
    for level, width in enumerate(sigmas.diff(), 1):
        start = x
        x = _refined(start + rate * width, start, slope, level, width, refine_iterations)
        x = smooth(x, level)
        rate = slope(x, level)
        on_step(Step(level, x, rate, _miss(x - rate * width, start)))
    return x


def _refined(x: Tensor, start: Tensor, slope: Slope, level: int, width: Tensor, iterations: int) -> Tensor:
    """Towards x = start + slope(x)·width: fixed-point iteration, its stride set by Aitken's rule (Irons and Tuck 1969)
    for each item of the batch.

    The plain iteration gains the factor Δσ/σ each time, which is nothing where a step goes to a very high noise level,
    as the last one of CogVideoX does (σ from 12 to 4519).
    """
    axes = tuple(range(1, x.ndim))
    stride: Tensor | float = 1.0
    previous: Tensor | None = None
    for _ in range(iterations):
        miss = start + slope(x, level) * width - x
        if previous is not None:
            change = miss - previous
            overlap, size = ((each * change).sum(axes, keepdim=True) for each in (previous, change))
            stride = -stride * overlap / size.clamp(min=torch.finfo(x.dtype).tiny)
        x, previous = x + stride * miss, miss
    return x


def walk_eq_12(
    x: Tensor,
    sigmas: Tensor,
    slope: Slope,
    draw: Callable[[int], Tensor],
    smooth: Smooth = lambda x, level: x,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """GE-Adapter's Eq. 12 as printed, along rising ``sigmas``; ``draw`` gives z ~ N(0, I) of a level, shaped as ``x``.

    y ← (y′ − (1 − α_t) / √(1 − ᾱ_t) · ε(y′, t)) / √α_t + √(1 − α_{t−1}) z, with y = √ᾱ x, t the step's noisier end,
    t − 1 its cleaner end, and α_t = ᾱ_t / ᾱ_{t−1}.
    """
    signal = (1 / (sigmas**2 + 1)).tolist()  # ᾱ
    alphas = [1.0, *(noisier / cleaner for cleaner, noisier in pairwise(signal))]
    for level, width in enumerate(sigmas.diff(), 1):
        start, alpha = x, alphas[level]
        y = smooth(x, level - 1) * sqrt(signal[level - 1])
        noise = slope(y / sqrt(signal[level]), level)
        y = (y - (1 - alpha) / sqrt(1 - signal[level]) * noise) / sqrt(alpha)
        x = (y + sqrt(1 - alphas[level - 1]) * draw(level)) / sqrt(signal[level])
        rate = slope(x, level)
        on_step(Step(level, x, rate, _miss(x - rate * width, start)))
    return x


def _miss(x: Tensor, start: Tensor) -> float | None:
    size = start.norm()
    return ((x - start).norm() / size).item() if size else None


@dataclass(frozen=True)
class Inversion:
    """How to invert. ``sigma_spatial`` is in latent pixels, or frames in ``feature_temporal``; ``sigma_intensity`` in
    what is filtered, latents of unit variance or features. ``filter_until``: share of the steps, from the clean end."""

    mode: Mode = "latent_spatial"
    kernel_size: int = 5
    sigma_spatial: float = 1.0
    sigma_intensity: float = 1.0
    filter_until: float = 0.5
    restandardise: bool = True
    refine_iterations: int = 0

    @property
    def kernel(self) -> tuple[int, float, float]:
        return self.kernel_size, self.sigma_spatial, self.sigma_intensity


@dataclass
class Report:
    """Of each step the noise level it reached, the RMS of the latent as the model sees it, and its drift."""

    sigma: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    drift: list[float | None] = field(default_factory=list)


@dataclass(eq=False)
class InversionSampler(Sampler):
    """A SAMPLER for rising sigmas: walks a clean ``latent_image`` to the noise it could have come from.

    It is no KSAMPLER, which scales what it returns, for flow models by 1/0 at σ = 1. Of the noise it is given only the
    seed counts, in ``literal``, whose noise is of the frames ``indices``, the latent's ``batch_index``. The result
    restarts sampling as ``latent_image`` without noise, that of a flow model at its highest σ as NOISE. ``features``:
    the technique of ``feature_temporal``, which is on the model. ``keep`` is called with the clip, and with the latent
    after every step. Levels that begin above 0 go on from the result of an inversion that ended there.
    """

    inversion: Inversion
    features: TemporalBilateral | None = None
    report: Report | None = None
    keep: Callable[[Tensor], None] = lambda latent: None
    indices: Indices = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        _refuse(self.inversion.mode, sampling, sigmas, latent_image, denoise_mask)
        steps, sigma_min = len(sigmas) - 1, sampling.sigma_min.to(sigmas)
        clip = sampling.noise_scaling(sigmas[0], torch.zeros_like(latent_image), latent_image)
        self.keep(clip)
        filtered_levels = self.inversion.filter_until * steps
        indices = range(len(clip)) if self.indices is None else self.indices

        def slope(x: Tensor, level: int) -> Tensor:
            if self.features is not None:
                self.features.active = level < filtered_levels
            sigma = sigmas[level].clamp(min=sigma_min)  # the cleanest level that the model knows, and no division by 0
            denoised = model_wrap(x * input_scale(sampling, sigma), sigma.expand(len(x)), **extra_args)
            require_finite_prediction(denoised, level, sigmas)
            return (x - denoised) / sigma

        def smooth(x: Tensor, level: int) -> Tensor:
            if self.inversion.mode not in ("latent_spatial", "literal") or level >= filtered_levels:
                return x
            scale = model_scale(sampling, sigmas[level])
            filtered = bilateral_spatial(x * scale, *self.inversion.kernel)
            return (restandardised(filtered, x * scale) if self.inversion.restandardise else filtered) / scale

        def on_step(step: Step) -> None:
            sigma = sigmas[step.level]
            self.keep(step.x)
            if self.report is not None:
                self.report.sigma.append(sigma.item())
                self.report.norm.append((step.x * model_scale(sampling, sigma)).square().mean().sqrt().item())
                self.report.drift.append(step.drift)
            if callback is not None:
                callback(step.level - 1, step.x - step.slope * sigma, step.x, steps)

        def draw(level: int) -> Tensor:
            stream = of_level(extra_args["seed"], float(sigmas[level]))
            return plain_noise(clip.shape, stream, indices).to(clip)

        if self.inversion.mode == "literal":
            x = walk_eq_12(clip, sigmas, slope, draw, smooth, on_step)
        else:
            x = invert(clip, sigmas, slope, smooth, self.inversion.refine_iterations, on_step)
        if isinstance(sampling, CONST) and self.max_denoise(model_wrap, sigmas.flip(0)):
            return x
        return sampling.inverse_noise_scaling(sigmas[-1], x)


NO_PICTURES = (
    "latent_image holds no pictures, or it also holds sound; expected the latent of a clip or of pictures alone. "
    "Leave the sound out."
)


def _refuse(mode: Mode, sampling: Any, sigmas: Tensor, latent: Tensor, denoise_mask: Tensor | None) -> None:
    if len(sigmas) < 2 or (sigmas.diff() <= 0).any():
        raise ValueError(
            "Inversion goes from the clip to noise, but sigmas do not rise all the way. Put FlipSigmas between the "
            "scheduler and SamplerBilateralDDIMInvert; BilateralDDIMInvert takes them as the scheduler gives them."
        )
    if latent.ndim < 4:
        raise ValueError(NO_PICTURES)
    if denoise_mask is not None:
        raise ValueError(
            "latent_image has a noise mask, but inversion needs the noise of the whole picture. Remove the mask here, "
            "and give it to the node that edits."
        )
    if mode == "literal" and isinstance(sampling, CONST):
        raise ValueError(
            "mode: literal needs a diffusion model (eps or v prediction), but this is a flow model. Use "
            "latent_spatial or none."
        )


def invert_latent(
    model: ModelPatcher,
    positive: list,
    negative: list | None,
    cfg: float,
    latent: dict[str, Any],
    sigmas: Tensor,
    inversion: Inversion,
    seed: int,
    asked_by: str,
    kept_in: torch.dtype | None = None,
) -> tuple[Tensor, Report, Trajectory | None]:
    """The noise of ``latent``, a LATENT, the report and, in the precision ``kept_in``, the latents of all steps.
    ``sigmas`` fall, as for sampling.

    TrajectoryError for latents that this precision cannot hold. UnknownModelError and NoSuchSiteError as in
    :mod:`..attention`; ValueError for what cannot be inverted.
    """
    features = None
    if inversion.mode == "feature_temporal":
        features = TemporalBilateral(*inversion.kernel)
        layers = ", ".join(site.name for site in last_decoder_level(sites_of(model)))
        model, _ = tap(model, features, layers=layers, kinds=["spatial"], asked_by=asked_by)
    guider = CFGGuider(model)
    guider.inner_set_conds({"positive": positive} | ({} if negative is None else {"negative": negative}))
    guider.set_cfg(cfg)
    latents: list[Tensor] = []

    def keep(latent: Tensor) -> None:
        if kept_in is not None:
            latents.append(latent.to("cpu", kept_in, copy=True))

    sampler = InversionSampler(
        inversion, features, report := Report(), keep, frame_numbers(latent, frames_axis(latent["samples"].shape))
    )
    require_levels(model, sigmas)
    samples = samples_for(model, latent)
    if samples.is_nested:
        raise ValueError(NO_PICTURES)
    if kept_in is not None:
        logging.info("%s keeps a trajectory: %s of RAM", asked_by, size_of(samples, sigmas, kept_in))
    with explain_unfit_inputs(model, {"samples": samples}, positive=positive, negative=negative):
        inverted = guider.sample(
            samples.cpu() * 0,
            samples,
            sampler,
            sigmas.flip(0),
            denoise_mask=latent.get("noise_mask"),
            callback=prepare_callback(model, len(sigmas) - 1),
            disable_pbar=True,
            seed=seed,
        )
    trajectory = None if kept_in is None else Trajectory.of(model, sigmas, latents, samples)
    return inverted.to(intermediate_device()), report, trajectory
