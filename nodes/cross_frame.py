"""CrossFrameAttention: the baselines that ZS² compares with (Text2Video-Zero, Tune-A-Video), and others'."""

from __future__ import annotations

from typing import Literal, get_args

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..techniques.cross_frame import AnyFrames, CrossFrame
from ..techniques.fine_coarse import FineCoarse
from ..techniques.technique import Technique
from .inputs import ATTENTION, layers_input, percent_inputs, pool_input, seed_input
from .node import Node
from .tapped import tapped

Keys = Literal["first", "previous", "first_and_previous", "fine_coarse", "all", "random"]


class CrossFrameAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CrossFrameAttention",
            display_name="Cross-Frame Attention",
            category=ATTENTION,
            description="Lets each frame attend to other frames instead of itself, so that they share one look. "
            "For image models (SD1.5, SDXL, Flux, Qwen-Image ...); the latent's batch is the clip.",
            search_aliases=[
                "text2video-zero",
                "sparse-causal attention",
                "tune-a-video",
                "first frame attention",
                "vid2vid-zero",
                "dense attention",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An image model: SD1.5, SDXL, Flux, SD3.5, Qwen-Image, Z-Image, Krea 2 and others. It "
                    "is cloned, not changed.",
                ),
                io.Combo.Input(
                    "keys",
                    options=list(get_args(Keys)),
                    default="first",
                    tooltip="The frames that each frame attends to. first: the first frame, whose look the clip keeps "
                    "(Text2Video-Zero). previous: the one before; the look may drift slowly. first_and_previous: both "
                    "(Tune-A-Video), at twice the attention cost. fine_coarse: itself, and all others at low "
                    "resolution (EI²). all: every frame in full (vid2vid-zero), at a cost that grows with the clip. "
                    "random: one other frame, chosen anew at every step.",
                ),
                layers_input(),
                *percent_inputs(),
                pool_input(optional=True),
                seed_input(
                    "Seeds the choice of frames for random; the other options ignore it. The same seed chooses the "
                    "same frames. Change it for another clip.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with cross-frame attention.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        keys: Keys,
        layers: str = "*",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        pool: int = 2,
        seed: int = 0,
    ) -> io.NodeOutput:
        technique: Technique
        if keys == "fine_coarse":
            technique = FineCoarse(pool)
        elif keys == "all" or keys == "random":
            technique = AnyFrames(keys, seed)
        else:
            technique = CrossFrame(keys)
        return tapped(model, technique, cls, ["spatial", "joint"], layers, start_percent, end_percent, by_row=True)


NODES = [CrossFrameAttention]
