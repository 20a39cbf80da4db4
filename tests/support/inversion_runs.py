"""Inversions, and sampling back from them."""

from __future__ import annotations

import json

import comfy.samplers
import torch
from coherence.nodes.inversion import BilateralDDIMInvert
from comfy_extras.nodes_custom_sampler import BasicGuider, DisableNoise, SamplerCustomAdvanced

FILTER = {
    "mode": "none",
    "kernel_size": 5,
    "sigma_spatial": 1.0,
    "sigma_intensity": 1.0,
    "filter_until": 0.5,
    "restandardise": True,
    "refine_iterations": 0,
}


def schedule(model, steps: int, name: str = "normal") -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, steps)


def inverted(model, positive, latent: dict, sigmas, **options) -> tuple[dict, dict]:
    """The node's latent and report."""
    cfg = options.pop("cfg", 1.0)
    with torch.inference_mode():
        latent, report, _ = BilateralDDIMInvert.execute(model, positive, cfg, latent, sigmas, **FILTER | options).args
    return latent, json.loads(report)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """By their norms, relative to what is expected."""
    return ((actual - expected).norm() / expected.norm()).item()


def sampled(model, positive, latent: dict, sigmas, noise=None, sampler=None) -> torch.Tensor:
    """SamplerCustomAdvanced's result, by default with DisableNoise and Euler."""
    (silent,) = DisableNoise.execute().args
    (guider,) = BasicGuider.execute(model, positive).args
    sampler = sampler or comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return SamplerCustomAdvanced.execute(noise or silent, guider, sampler, sigmas, latent).args[0]["samples"]
