"""Random weights for ComfyUI's own module classes: names and shapes from the class, values from a seed."""

import re
from collections.abc import Callable, Mapping

import torch

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


def prefixed(prefix: str, weights: Weights) -> Weights:
    """The same weights under ``prefix`` + name."""
    return {prefix + name: weight for name, weight in weights.items()}
