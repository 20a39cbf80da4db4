"""Latents of a run: their channels and scale, and which entries of a LATENT are passed on with the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import V_PREDICTION_DDPM
from torch import Tensor

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""Entries of a LATENT that only an empty one needs: what size it stands for."""


def samples_for(model: ModelPatcher, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT; of an empty one in the channels and the size that ``model`` has, as KSampler's."""
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], *map(latent.get, RATIOS))


def require_clip_alone(latent: Mapping[str, Any], name: str = "latent_image") -> None:
    """ValueError for a LATENT of several modalities."""
    if latent["samples"].is_nested:
        raise ValueError(f"{name} holds a clip and sound, expected a clip alone. Use a model without sound.")


def noise_for(noise: Any, latent: Mapping[str, Any]) -> Any:
    """The noise that a NOISE makes for ``latent``. ValueError if its shape differs, or it contains NaN or infinity."""
    made = noise.generate_noise(latent)
    for x, samples in zip(_parts(made), _parts(latent["samples"]), strict=True):
        if x.shape != samples.shape:
            raise ValueError(
                f"noise has shape {tuple(x.shape)} for latent_image of shape {tuple(samples.shape)}, expected the "
                "same. Use the latent that the noise was made for, or another noise node."
            )
        if not x.isfinite().all():
            raise ValueError("noise contains NaN or infinity. Use another noise node.")
    return made


def require_levels(model: ModelPatcher, sigmas: Tensor) -> None:
    """ValueError if SIGMAS are for another model: start_percent and end_percent would select no steps."""
    highest = float(model.get_model_object("model_sampling").percent_to_sigma(0.0))
    if len(sigmas) and float(sigmas.max()) > 1.0001 * highest:
        raise ValueError(
            f"sigmas go up to {float(sigmas.max()):.5g}, but this model's noise levels end at {highest:.5g}: they are "
            "for another model. Connect the scheduler to this model."
        )


def require_falling(sigmas: Tensor) -> None:
    """ValueError if SIGMAS have no step, or do not fall."""
    if len(sigmas) < 2:
        raise ValueError("sigmas holds no step, expected two values or more. Raise steps or denoise.")
    if (sigmas.diff() > 0).any() or sigmas[0] == sigmas[-1]:
        raise ValueError(
            f"sigmas go from {float(sigmas[0]):.5g} to {float(sigmas[-1]):.5g}, expected falling noise levels. "
            "Connect a scheduler without FlipSigmas after it."
        )


def _parts(samples: Any) -> list[Tensor]:
    return samples.unbind() if getattr(samples, "is_nested", False) else [samples]


def with_samples(latent: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
    """A LATENT of the result ``samples`` with what else ``latent`` has."""
    return {**{name: value for name, value in latent.items() if name not in RATIOS}, "samples": samples}


def input_scale(sampling: Any, sigma: Tensor) -> Tensor | float:
    """What x is multiplied by before ComfyUI's model sees it: CogVideoX was trained on x of unit variance, and
    ComfyUI, which scales x for eps and v models itself, leaves this one to the sampler (as in its VOID_DDIM)."""
    return (sigma**2 + 1) ** -0.5 if isinstance(sampling, V_PREDICTION_DDPM) else 1.0


def model_scale(sampling: Any, sigma: Tensor) -> Tensor | float:
    """What makes a latent one of unit variance, as the model sees it."""
    return sampling.calculate_input(sigma, torch.ones_like(sigma)) * input_scale(sampling, sigma)
