"""A ControlNet while a model is trained: it steers every loss, and learns nothing.

No gradient passes through it: the weights that its node loaded are inference tensors, which autograd refuses, so what
is learned learns by the model alone. ComfyUI adds a ControlNet's output to the model's features in place, and the
backward pass needs those as they were: here it is added out of place.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from ..samplers.controls import SeenControl
from .loop import TrainingError


def steered(conditioning: list, control_net: Any, images: Tensor, strength: float) -> list:
    """A CONDITIONING like ``conditioning`` with ``control_net`` on ``images``, (frames, H, W, 3), of its clip.

    TrainingError where the ControlNet needs more than images.
    """
    if not isinstance(control_net, ControlBase) or control_net.latent_format is not None:
        raise TrainingError(
            f"control_net: {type(control_net).__name__} needs a VAE or a model's own nodes, expected a ControlNet or "
            "T2I-Adapter that takes images alone, as those of SD1.5, SD2 and SDXL do. Use one of these."
        )
    hint = images[..., :3].movedim(-1, 1).detach().clone()  # an image may be an inference tensor
    control = _Steering(control_net.copy().set_cond_hint(hint, strength))
    return [[text, {**more, "control": control, "control_apply_to_uncond": False}] for text, more in conditioning]


class _Steering(SeenControl):
    """A ControlNet in conditionings that a model is trained with."""

    def __init__(self, control: Any) -> None:
        super().__init__(control, lambda inputs, options: (inputs, options))

    def get_control(self, x: Tensor, t: Tensor, cond: dict, branches: int, options: dict[str, Any]) -> Any:
        self.cond_hint = None  # ComfyUI keeps what it cut to the rows of the call before
        with torch.no_grad():
            found = super().get_control(x, t, cond, branches, options)
        if found is None:
            return None
        return {
            name: [None if each is None else each.as_subclass(_OutOfPlace) for each in listed]
            for name, listed in found.items()
        }


class _OutOfPlace(Tensor):
    """A tensor that others take up by ``+=`` without being written to."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [each.as_subclass(Tensor) if isinstance(each, cls) else each for each in args]
        if func in (Tensor.__iadd__, Tensor.add_):
            features, added = plain
            return features + added.to(features.dtype)
        return func(*plain, **(kwargs or {}))
