"""The demo models read as flow models: the same predictions in a flow's terms, for what only flow models do.

A latent of ours is X + σN, one of a flow model (1 − t) X + tN. With t = σ / (1 + σ) they are the same but for a factor,
so a flow model's clean latent is ours, at the level σ = t / (1 − t). The noisiest level is t = 0.936.
"""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, EPS, ModelSamplingDiscrete
from torch import Tensor


class FlowOfEps(ModelSamplingDiscrete, CONST):
    """ComfyUI's sampling of a flow model, for a network that predicts the noise."""

    def set_sigmas(self, sigmas: Tensor) -> None:
        super().set_sigmas(sigmas / (1 + sigmas))

    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 if percent <= 0 else super().percent_to_sigma(percent)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        t = sigma.reshape(-1, *[1] * (noise.ndim - 1))
        return noise / ((1 - t) ** 2 + t**2) ** 0.5

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        t = sigma.reshape(-1, *[1] * (model_input.ndim - 1))
        return (model_input - t * model_output) / (1 - t)


def as_flow(model: ModelPatcher) -> ModelPatcher:
    """A clone of ``model`` as a flow model. ValueError where it does not predict the noise."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, EPS) or not isinstance(sampling, ModelSamplingDiscrete):
        raise ValueError(f"expected a model that predicts noise, such as the demo's, got {type(sampling).__name__}")
    clone = model.clone()
    clone.add_object_patch("model_sampling", FlowOfEps(model.model.model_config))
    return clone
