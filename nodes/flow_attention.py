"""FlowAttention: attention along optical flow (FLATTEN, arXiv 2310.05922)."""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from comfy.model_management import get_torch_device
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..metrics.flow import SMALLEST
from ..techniques.flow_attention import FlowAttention as Technique
from .checks import InputError
from .flow_model import flow_input, flow_of
from .inputs import ATTENTION, layers_input, percent_inputs
from .node import Node
from .tapped import tapped


class FlowAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowAttention",
            display_name="Flow Attention (FLATTEN)",
            category=ATTENTION,
            description="For editing a clip: every frame attends to all frames, then each patch attends along its path "
            "through your video, so that moving things keep their look. For image models, such as SD1.5, SDXL and "
            "Flux; the latent's batch is the clip.",
            search_aliases=[
                "flatten",
                "optical flow",
                "flow-guided attention",
                "trajectory",
                "zero-shot video editing",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An image model: SD1.5, SDXL, Flux, SD3.5, Qwen-Image and others. It is cloned, not "
                    "changed.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="The video whose motion the clip follows, with as many frames as the latent; any size. Its "
                    "optical flow is measured when the node runs.",
                ),
                layers_input(),
                *percent_inputs(),
                io.String.Input(
                    "resolutions",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="Which layers follow the motion, by the height of their token grid, such as '64, 32'. The "
                    "others only attend to all frames. Empty: all layers follow. The authors use 64, the finest layers "
                    "of SD1.5 at 512 pixels. Limit it if coarse layers distort the motion.",
                ),
                flow_input("Connect one for real footage with fast or large motion, as the authors do."),
            ],
            outputs=[io.Model.Output(tooltip="The model, whose attention follows the video's motion.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        images: Tensor,
        layers: str = "*",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        resolutions: str = "",
        flow: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        technique = Technique(_flow_through(images, flow), _heights(resolutions))
        return tapped(model, technique, cls, ["spatial", "joint"], layers, start_percent, end_percent, by_row=True)


def _flow_through(images: Tensor, model: ModelPatcher | None) -> Tensor:
    """Of every frame to the next, (frames − 1, 2, H, W), as a share of width and height."""
    if len(images) < 2:
        raise InputError("images holds one frame, expected two or more: one frame shows no motion. Load a clip.")
    if min(images.shape[1:3]) < SMALLEST:
        raise InputError(f"images are {images.shape[2]} × {images.shape[1]} pixels, expected {SMALLEST} or more.")
    device, measure = get_torch_device(), flow_of(model)
    frames = images[..., :3].float()
    sizes = frames.new_tensor([frames.shape[2], frames.shape[1]])
    pairs = ((one[None].to(device), other[None].to(device)) for one, other in pairwise(frames))
    return torch.cat([measure(*pair).cpu() / sizes for pair in pairs]).movedim(-1, 1)


def _heights(resolutions: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*(\d{1,4}\s*(,\s*\d{1,4}\s*)*)?", resolutions):
        raise InputError(
            f"resolutions is {resolutions!r}, expected whole numbers with commas between, such as '64, 32'."
        )
    return tuple(int(height) for height in re.findall(r"\d+", resolutions))


NODES = [FlowAttention]
