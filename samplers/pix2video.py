"""Pix2Video's guided latent update (arXiv 2303.12688, §3.2): each frame's prediction drawn towards the frame before's.

After a DDIM step from x_t, whose predictions of the clean latents are x̂₀ᵏ, of frame k:

    x_{t−1}ᵏ ← x_{t−1}ᵏ − w · ∂ mean((x̂₀ᵏ − x̂₀ᵏ⁻¹)²) / ∂x̂₀ᵏ  =  x_{t−1}ᵏ − (2w/N) (x̂₀ᵏ − x̂₀ᵏ⁻¹)

N is the number of values in a frame's latent; the first frame stays. The paper writes a squared norm and a step size;
the authors' code has the mean, with w = 100 in the first half of the steps, and takes the derivative by x̂₀ᵏ alone, with
x̂₀ᵏ⁻¹ as the model predicted it. So it is closed: no backward pass, and all frames at once. Their x is that of DDPM, the
one that the network sees; a sampler's here is s(σ) times that (s = √(1 + σ²), for flow models 1).

Every sampler gets the update as a part of its prediction D. In a step from σ to σ′, Euler's method, which is DDIM, adds
(x − D)/σ · (σ′ − σ); so

    D ← D − (2w/N) · s(σ′) · c/(σ − σ′) / g · (Dᵏ − Dᵏ⁻¹)

where c is the noise level of the call: a constant velocity along the step. At c = σ Euler's step has just the update,
and g is 1. A step of other samplers may take more of the velocity, or less: ``lcm`` and those of CFG++ put D itself
into x, an ancestral one goes further than σ′ before it adds noise. g says how much more than Euler's, and is measured
before the run (:func:`.rehearsal.moved_by`). Samplers that look at earlier steps (DPM++ 2M) integrate the same
velocity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy.samplers import KSAMPLER, sampler_object
from torch import Tensor

from ..attention.keys import STEP_GAINS
from ..attention.steps import Steps, is_between
from ..noise.streams import frames_axis
from .latents import model_scale
from .rehearsal import moved_by

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class UpdateError(ValueError):
    """Frames cannot be drawn towards each other in this run."""


def from_previous(denoised: Tensor, axis: int) -> Tensor:
    """x̂₀ᵏ − x̂₀ᵏ⁻¹ of the frames on ``axis``; 0 for the first."""
    change = torch.zeros_like(denoised)
    change.narrow(axis, 1, denoised.shape[axis] - 1).copy_(denoised.diff(dim=axis))
    return change


def step_of(sigma: float, sigmas: Sequence[float]) -> int:
    """The step in which the model is called at ``sigma``: its place in ``sigmas``, which fall."""
    begun = [n for n, level in enumerate(sigmas[:-1]) if level >= sigma * (1 - 1e-5)]
    return begun[-1] if begun else 0


def gain_of(sampler: Any, guider: Any, step: Tensor, like: Tensor) -> float:
    """g of a ``step`` from a noise level to another. 1 where nothing can be measured: the sampler is none of ComfyUI's
    kind, or the step calls no model or goes nowhere."""
    sampler, length = getattr(sampler, "sampler", sampler), float(step[0] - step[1])  # an edit's holds the user's
    if not isinstance(sampler, KSAMPLER) or length <= 0:
        return 1.0

    def change(args: dict[str, Any]) -> Tensor:
        return args["denoised"] - float(args["sigma"].flatten()[0]) / length

    ours, eulers = (moved_by(change, each, guider, step, like) for each in (sampler, sampler_object("euler")))
    gain = round(ours / eulers, 4)  # whatever noise was drawn, and rounded off
    return gain if isfinite(gain) and gain > 0 else 1.0


@dataclass(frozen=True, eq=False)
class LatentUpdate:
    """The update with the weight ``scale``, w, until ``end_percent`` of sampling."""

    scale: float
    end_percent: float
    asked_by: str
    start_percent: float = 0.0

    def around_run(self, executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Tensor, *args, **kwargs):
        """OUTER_SAMPLE: NoStepError where no step can lie in the range."""
        if len(sigmas) > 1 and sigmas[0] > sigmas[-1]:
            Steps(sigmas.tolist(), (self,), executor.class_obj.model_patcher.get_model_object("model_sampling"))
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def around_sampler(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args
    ):
        """SAMPLER_SAMPLE: measures the sampler's steps."""
        if len(sigmas) > 1 and sigmas[0] > sigmas[-1]:
            options = extra_args["model_options"]["transformer_options"]
            if STEP_GAINS not in options:
                steps = sigmas.unfold(0, 2, 1)
                options[STEP_GAINS] = [gain_of(executor.class_obj, guider, step, noise) for step in steps]
        return executor(guider, sigmas, extra_args, callback, noise, *args)

    def after_cfg(self, args: dict[str, Any]) -> Tensor:
        """ComfyUI's function after guidance: the prediction with the update in it."""
        denoised, sampling = args["denoised"], args["model"].model_sampling
        sigma = float(args["sigma"].flatten()[0])
        if not is_between(sigma, self.start_percent, self.end_percent, sampling):
            return denoised
        options = args["model_options"]["transformer_options"]
        sigmas = options["sample_sigmas"].tolist()
        axis, weight = self._for(denoised, sigmas)
        step = step_of(sigma, sigmas)
        begin, end = sigmas[step : step + 2]
        velocity = weight * _sampler_over_network(sampling, end) / (begin - end) / options[STEP_GAINS][step]
        return denoised - sigma * velocity * from_previous(denoised, axis)

    def _for(self, denoised: Tensor, sigmas: Sequence[float]) -> tuple[int, float]:
        """The axis of the frames of ``denoised``, and 2w/N. UpdateError where they cannot be drawn together."""
        if denoised.ndim not in (4, 5):
            raise UpdateError(
                f"{self.asked_by}: the latent has shape {tuple(denoised.shape)}, expected a clip alone: (frames, "
                "channels, height, width) or (batch, channels, frames, height, width). Use a model without sound."
            )
        if sigmas[0] < sigmas[-1]:
            raise UpdateError(
                f"{self.asked_by}: the noise levels rise from {sigmas[0]:.4g} to {sigmas[-1]:.4g}, as in an inversion, "
                "expected falling ones. Give this sampler the model from before the node."
            )
        axis = frames_axis(denoised.shape)
        frames = denoised.shape[axis]
        if frames == 1:
            raise UpdateError(
                f"{self.asked_by}: the clip has one frame, expected two or more: it has no frame before it. "
                "Raise the batch size of the latent, or give this sampler the model from before the node."
            )
        clips = 1 if axis == 0 else len(denoised)
        values = denoised.numel() // (frames * clips)
        if 2 * self.scale > values:
            raise UpdateError(
                f"{self.asked_by}: scale is {self.scale:g}, but a frame's latent has only {values} values, so the "
                f"update would overshoot the frame before. Set scale to {values / 2:g} or less, or draw larger frames."
            )
        return axis, 2 * self.scale / values


def _sampler_over_network(sampling: Any, sigma: float) -> float:
    """s(σ): a sampler's x over the one that the network sees."""
    return 1 / float(model_scale(sampling, torch.tensor(sigma, dtype=torch.float64)))


def updated(model: ModelPatcher, scale: float, end_percent: float, asked_by: str) -> ModelPatcher:
    """A clone of ``model`` that samples with the update; at ``scale`` 0 as it was."""
    clone = model.clone()
    if scale:
        update = LatentUpdate(scale, end_percent, asked_by)
        clone.set_model_sampler_post_cfg_function(update.after_cfg)
        clone.add_wrapper(WrappersMP.OUTER_SAMPLE, update.around_run)
        clone.add_wrapper(WrappersMP.SAMPLER_SAMPLE, update.around_sampler)
    return clone
