"""Optical flow by a model of ComfyUI's type OPTICAL_FLOW, torchvision's RAFT, in place of the computed one."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from comfy.model_management import load_models_gpu
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..metrics.flow import FlowOf, optical_flow
from .checks import InputError

FlowModel = io.Custom("OPTICAL_FLOW")
LEAST, CELL = 128, 8  # pixels: RAFT's smallest picture, and what its sides are multiples of


def flow_input(gains: str) -> io.Input:
    """``gains``: when to connect one."""
    return FlowModel.Input(
        "flow",
        optional=True,
        tooltip=f"A model that measures optical flow, from Load Optical Flow Model (RAFT). {gains} Leave it empty to "
        "compute the flow without a model.",
    )


def flow_of(model: ModelPatcher | None) -> FlowOf:
    """What measures flow as :func:`optical_flow` does: it, or ``model``."""
    if model is None:
        return optical_flow
    if not isinstance(model, ModelPatcher):
        raise InputError(
            f"flow is a {type(model).__name__}, expected a model that measures flow. Connect Load Optical Flow Model."
        )
    load_models_gpu([model])
    return partial(_by_model, model)


@torch.no_grad()
def _by_model(model: ModelPatcher, first: Tensor, second: Tensor) -> Tensor:
    """The last of the model's refinements, in pixels of the pictures; they go to it resized to sides that it takes."""
    height, width = first.shape[1:3]
    size = [max(LEAST, CELL * round(side / CELL)) for side in (height, width)]
    one, other = (
        F.interpolate(each.movedim(-1, 1).to(model.load_device).float(), size, mode="bilinear", antialias=True) * 2 - 1
        for each in (first, second)
    )
    flow = F.interpolate(model.model(one, other)[-1], (height, width), mode="bilinear").movedim(1, -1)
    return (flow * flow.new_tensor([width / size[1], height / size[0]])).to(first)
