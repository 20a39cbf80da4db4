"""Text2Video-Zero's latents with motion (arXiv 2303.13439, §3.3.1): a first frame, shifted for each later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_management import intermediate_device
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.samplers import CFGGuider, sampler_object
from latent_preview import prepare_callback
from torch import Tensor

from ..frames.motion_field import displacement, renoised, translated
from ..noise.streams import generator, plain_noise
from .finite import require_finite_prediction, step_at
from .latents import require_falling, require_levels, samples_for
from .unfit import explain_unfit_inputs


@dataclass(frozen=True)
class MotionField:
    """``delta_x``, ``delta_y``: pixels a frame, right and down. ``t0`` < ``t1``: where on the schedule the first frame
    is moved, and where the clip starts; shares of the steps, counted from the clean end.
    """

    delta_x: float
    delta_y: float
    t0: float
    t1: float

    def levels(self, sigmas: Tensor) -> tuple[int, int]:
        """Positions of t1 and t0 in falling ``sigmas`` (steps + 1,). ValueError if they coincide."""
        steps = len(sigmas) - 1
        at_t1, at_t0 = (min(max(steps - 1 - round(t * steps), 0), steps - 1) for t in (self.t1, self.t0))
        if at_t1 >= at_t0:
            raise ValueError(
                f"t0 is {self.t0:g} and t1 {self.t1:g}: with the {steps} steps in sigmas both fall on step {at_t0}, "
                "or t0 is the noisier one. t0 must be at least one step below t1: lower t0, raise t1, or use more "
                "steps."
            )
        return at_t1, at_t0


def motion_latents(
    model: ModelPatcher,
    positive: list,
    negative: list,
    cfg: float,
    latent: dict[str, Any],
    sigmas: Tensor,
    field: MotionField,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The clip's latents (F, C, H, W) at t1, shaped as ``latent``, and the sigmas from there on.

    The first frame goes by DDIM, which is Euler, from the highest sigma to t1, where it stays, and on to t0, from where
    the others start. Every frame has noise of its own, which depends on its number alone; ``batch_index`` tells it.
    """
    _refuse(latent["samples"], model)
    require_falling(sigmas)
    require_levels(model, sigmas)
    at_t1, at_t0 = field.levels(sigmas)
    samples = samples_for(model, latent)
    shape, latents = (1, *samples.shape[1:]), model.get_model_object("latent_format")

    def denoise(noise: Tensor, start: Tensor, levels: Tensor) -> Tensor:
        guider = CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        preview = prepare_callback(model, max(len(levels) - 1, 1))

        def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            require_finite_prediction(denoised, step_at(levels[step], sigmas), sigmas)
            preview(step, denoised, x, total)

        euler = sampler_object("euler")
        with explain_unfit_inputs(model, {"samples": samples}, positive=positive, negative=negative):
            return guider.sample(noise, start, euler, levels, callback=callback, disable_pbar=True, seed=seed).cpu()

    nothing = torch.zeros(shape)
    first = denoise(plain_noise(shape, generator(seed)), nothing, sigmas[: at_t1 + 1])
    layout = denoise(nothing, first, sigmas[at_t1 : at_t0 + 1])
    ends = sigmas[at_t0].item(), sigmas[at_t1].item()

    def moved(frame: int) -> Tensor:
        if frame == 0:
            return first
        right, down = (
            displacement(frame, delta, latents.spacial_downscale_ratio) for delta in (field.delta_x, field.delta_y)
        )
        there = latents.process_in(translated(layout, right, down))
        return latents.process_out(renoised(there, plain_noise(shape, generator(seed, 0, frame)), *ends))

    numbers: Sequence[int] = latent.get("batch_index") or range(len(samples))
    return torch.cat([moved(frame) for frame in numbers]).to(intermediate_device()), sigmas[at_t1:]


def _refuse(samples: Tensor, model: ModelPatcher) -> None:
    if samples.is_nested or samples.ndim != 4:
        raise ValueError(
            "latent_image is a video latent, expected an image latent whose batch is the clip. Use an image model "
            "(SD1.5, SD2 or SDXL) and EmptyLatentImage; video models create motion themselves."
        )
    if isinstance(model.get_model_object("model_sampling"), CONST):
        raise ValueError(
            "The model is a flow model (SD3, Flux, ...), expected one of eps or v prediction: SD1.5, SD2 or SDXL."
        )
    if model.get_model_object("latent_format").latent_dimensions != 2:
        raise ValueError(
            "The model is a video model, which would treat each frame as a separate clip; expected an image model: "
            "SD1.5, SD2 or SDXL. Video models create motion themselves."
        )
