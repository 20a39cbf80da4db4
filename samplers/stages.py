"""An edit in several samplers, as Wan 2.2's two experts need it: each continues where the one before left both clips.

A stage is told by its ``sigmas``: it ends above 0 and leaves noise in, or it begins with a target of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.steps import NoStepError, Steps, require_percents
from .latents import require_clip_alone, samples_for


@dataclass(frozen=True)
class _Span:
    asked_by: str
    start_percent: float
    end_percent: float


def acts_in_stage(model: ModelPatcher, sigmas: Tensor, start_percent: float, end_percent: float, asked_by: str) -> bool:
    """Whether one of the steps of a stage lies in the range; if none does, the log says so. Of the whole run some
    steps may."""
    require_percents(start_percent, end_percent, asked_by)
    span = _Span(asked_by, start_percent, end_percent)
    try:
        Steps(sigmas.tolist(), [span], model.get_model_object("model_sampling"))
    except NoStepError:
        logging.info(
            "%s: no step of this stage lies between start_percent %s and end_percent %s, so it replaces nothing and "
            "only goes on with both clips.",
            asked_by,
            start_percent,
            end_percent,
        )
        return False
    return True


def target_samples(model: ModelPatcher, target: Mapping[str, Any], samples: Tensor) -> Tensor:
    """The samples of ``target_latent``, beside the source's. ValueError where the two do not belong together."""
    require_clip_alone(target, "target_latent")
    theirs = samples_for(model, target)
    if theirs.shape != samples.shape:
        raise ValueError(
            f"target_latent has shape {tuple(theirs.shape)} and latent_image {tuple(samples.shape)}, expected the "
            "same. Connect edited and source of the same Entropy-Guided Edit."
        )
    if bool(theirs.any()) != bool(samples.any()):
        empty, other = ("latent_image", "source") if theirs.any() else ("target_latent", "edited")
        raise ValueError(
            f"{empty} is empty (all zeros), but the other clip is not. Connect {other} of the first Entropy-Guided "
            f"Edit to {empty}."
        )
    return theirs


def require_no_noise_mask(latent: Mapping[str, Any], beside: str) -> None:
    """ValueError for a LATENT with a noise mask: outside it ComfyUI keeps the latent as it is, with its noise."""
    if latent.get("noise_mask") is not None:
        raise ValueError(
            f"latent_image has a noise mask, which would keep the noise that is in the latent, so it cannot be used "
            f"with {beside}. Remove the noise mask, and connect the mask to the mask input of this node."
        )
