"""TemporalMomentumAttention: ZS²'s running average of keys and values over the frames (arXiv 2407.21475)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..techniques.kept import KeptRuns, Momentum
from ..techniques.momentum import TemporalMomentum
from .inputs import (
    ATTENTION,
    MomentumType,
    frames_per_batch_input,
    layers_input,
    percent_inputs,
    schedule_input,
    schedule_of,
)
from .node import Node
from .tapped import tapped


class TemporalMomentumAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalMomentumAttention",
            display_name="Temporal Momentum Attention (ZS²)",
            category=ATTENTION,
            description="Keeps the look of a clip from frame to frame: each frame attends to a running average of "
            "all frames before it. For image models (SD1.5, SDXL, Flux, Qwen-Image ...); the latent's batch is the "
            "clip.",
            search_aliases=[
                "zs2",
                "zero-shot video",
                "cross-frame attention",
                "temporal consistency",
                "coherence",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An image model: SD1.5, SDXL, Flux, SD3.5, Qwen-Image, Z-Image, Krea 2 and others. It "
                    "is cloned, not changed.",
                ),
                io.Float.Input(
                    "mu",
                    default=0.98,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How slowly the average follows the frames (the paper's μ). 0: every frame on its own. "
                    "0.98: close to the first frame's look. 1: the first frame's look throughout. Lower it for more "
                    "change along the clip.",
                ),
                schedule_input(
                    "mu_schedule",
                    "0:0.98, 8:0.5",
                    "mu for each frame as frame:value pairs with linear interpolation, or a list of numbers; frames "
                    "count from 0. Replaces mu. If empty, mu applies throughout. Use it to let part of the clip "
                    "change faster.",
                    advanced=True,
                ),
                layers_input(),
                *percent_inputs(),
                frames_per_batch_input(
                    "4 or 8: a clip of any length needs only the memory of that many frames, with the same result."
                ),
                MomentumType.Input(
                    "previous",
                    optional=True,
                    tooltip="Momentum of an earlier run, from Momentum of Run or LoadMomentum. This clip continues "
                    "after its last frame, and mu_schedule goes on counting. Model, layers, size, steps and prompts "
                    "must be the same. Continue the noise too, with previous of DependencyNoise.",
                ),
                io.Boolean.Input(
                    "keep",
                    default=False,
                    optional=True,
                    tooltip="Keeps the averages of the last frame in RAM for the next clip; Momentum of Run gets them. "
                    "With 20 steps, cfg and half precision: 1.7 GiB for SD1.5 at 512 × 512, 16 GiB for SDXL at 1024 × "
                    "1024. The log gives the size after the first step. Fewer layers or steps need less.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with momentum attention.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        mu: float,
        mu_schedule: str | float | list[float] = "",
        layers: str = "*",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        frames_per_batch: int = 0,
        previous: Momentum | None = None,
        keep: bool = False,
    ) -> io.NodeOutput:
        schedule = schedule_of("mu_schedule", mu_schedule, 0.0, 1.0)
        technique = TemporalMomentum(mu, schedule, frames_per_batch, previous, KeptRuns() if keep else None)
        return tapped(model, technique, cls, ["spatial", "joint"], layers, start_percent, end_percent, by_row=True)


NODES = [TemporalMomentumAttention]
