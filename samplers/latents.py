"""What every run asks of its latents: their channels, their scale, and what of a LATENT goes on with the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sample
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import V_PREDICTION_DDPM
from torch import Tensor

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""Entries of a LATENT that only an empty one needs: what size it stands for."""


def samples_for(model: ModelPatcher, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT; of an empty one in the channels and the size that ``model`` has, as KSampler's."""
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], *map(latent.get, RATIOS))


def with_samples(latent: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
    """A LATENT of the result ``samples`` with what else ``latent`` has."""
    return {**{name: value for name, value in latent.items() if name not in RATIOS}, "samples": samples}


def input_scale(sampling: Any, sigma: Tensor) -> Tensor | float:
    """What x is multiplied by before ComfyUI's model sees it: CogVideoX was trained on x of unit variance, and
    ComfyUI, which scales x for eps and v models itself, leaves this one to the sampler (as in its VOID_DDIM)."""
    return (sigma**2 + 1) ** -0.5 if isinstance(sampling, V_PREDICTION_DDPM) else 1.0
