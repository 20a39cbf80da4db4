"""Text2Video-Zero's latents with motion (arXiv 2303.13439, §3.3.1): a first frame, shifted for each later one.

With masks of the foreground, the background of all frames is smoothed towards the first one's (§3.3.3), as
:func:`..frames.motion_field.smoothed` has it.
"""

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

from ..frames.motion_field import displacement, foreground, renoised, smoothed, translated
from ..noise.streams import generator, plain_noise
from .finite import require_finite_prediction, step_at
from .latents import require_falling, require_levels, samples_for
from .noises import frame_numbers
from .unfit import explain_unfit_inputs


@dataclass(frozen=True)
class MotionField:
    """``delta_x``, ``delta_y``: pixels a frame, right and down. ``t0`` < ``t1``: where on the schedule the first frame
    is moved, and where the clip starts; shares of the steps, counted from the clean end. ``mask``: the foreground of
    every frame (F, H, W), or of all (H, W) and (1, H, W); elsewhere frames take the share ``background`` of the moved
    first frame.
    """

    delta_x: float
    delta_y: float
    t0: float
    t1: float
    mask: Tensor | None = None
    background: float = 0.6

    def foregrounds(self, numbers: Sequence[int], height: int, width: int) -> tuple[list[Tensor], Tensor]:
        """Of the frames with these ``numbers``, and of the first frame, in latent cells. ValueError if masks are
        missing."""
        assert self.mask is not None
        masks = self.mask if self.mask.ndim == 3 else self.mask[None]
        if len(masks) not in (1, len(numbers)):
            raise ValueError(
                f"mask holds {len(masks)} masks, expected one for each of the {len(numbers)} frames, or one for all. "
                "Make it of the clip that this node gave without a mask."
            )
        own = list(foreground(masks, height, width).expand(len(numbers), -1, -1))
        if len(masks) == 1:
            return own, own[0]
        if 0 not in numbers:
            raise ValueError(
                f"mask holds frames {', '.join(map(str, numbers))} (latent_image's batch_index), but the background "
                "comes from frame 0, whose mask is needed, too. Give the whole clip, or one mask for all frames."
            )
        return own, own[list(numbers).index(0)]

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

    def shift(frame: int) -> tuple[int, int]:
        cell = latents.spacial_downscale_ratio
        return displacement(frame, field.delta_x, cell), displacement(frame, field.delta_y, cell)

    def moved(frame: int) -> Tensor:
        if frame == 0:
            return first
        there = latents.process_in(translated(layout, *shift(frame)))
        return latents.process_out(renoised(there, plain_noise(shape, generator(seed, 0, frame)), *ends))

    numbers: Sequence[int] = frame_numbers(latent, 0) or range(len(samples))
    frames = [moved(frame) for frame in numbers]
    if field.mask is not None and field.background:
        own, of_first = field.foregrounds(numbers, *shape[-2:])
        frames = [
            smoothed(each, first, mask, of_first, *shift(number), field.background)
            for number, each, mask in zip(numbers, frames, own, strict=True)
        ]
    return torch.cat(frames).to(intermediate_device()), sigmas[at_t1:]


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
