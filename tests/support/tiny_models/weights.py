"""Random weights for ComfyUI's own module classes: names and shapes from the class, values from a seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Weights = dict[str, torch.Tensor]


def named_shapes(build: Callable[[], torch.nn.Module]) -> dict[str, torch.Size]:
    """Names and shapes of the weights of the module that ``build`` makes, without memory for them."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in build().state_dict().items()}


def draw(
    shapes: Mapping[str, torch.Size],
    gains: Mapping[str, float],
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Weights that keep activations at unit variance: matrices N(0, 1/fan_in), norms 1, biases 0.

    ``gains`` maps a regular expression on the whole name to a factor. Random queries and keys attend to
    everything alike, and a test on such a map sees nothing: the families raise theirs until maps are sharp.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weight = torch.randn(shape, generator=generator).mul_((shape[0] / shape.numel()) ** 0.5)
        else:
            weight = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        for pattern, gain in gains.items():
            if re.fullmatch(pattern, name):
                weight.mul_(gain)
        weights[name] = weight.to(dtype)
    return weights


def build_model(config: str, unet_config: Mapping[str, Any], gains: Mapping[str, float], seed: int = 0) -> ModelPatcher:
    """A model of the class ``config`` of comfy.supported_models, of weights as ``draw`` makes them."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    made = getattr(comfy.supported_models, config)(dict(unet_config))
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "", device="cpu")
    network = model.diffusion_model
    # Anima's adapter for T5 tokens has a fixed width of 1024, and these texts do not go through it.
    shapes = {name: weight.shape for name, weight in network.state_dict().items() if "llm_adapter" not in name}
    network.load_state_dict(draw(shapes, gains, seed), strict=False)
    return ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def prefixed(prefix: str, weights: Weights) -> Weights:
    """The same weights under ``prefix`` + name."""
    return {prefix + name: weight for name, weight in weights.items()}
