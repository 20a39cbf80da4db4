"""Pix2VideoGuidance: the latent update of Pix2Video (arXiv 2303.12688, §3.2)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..samplers.pix2video import updated
from .node import Node


class Pix2VideoGuidance(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Pix2VideoGuidance",
            display_name="Pix2Video Guidance",
            category="coherence/guidance",
            description="Against flicker: in the first half of the steps it pulls each frame towards the previous one. "
            "Works with any model and sampler, but not with sound; put it last, just before the sampler. Combine it "
            "with Cross-Frame Attention (first_and_previous), as Pix2Video does.",
            search_aliases=["pix2video", "guided latent update", "flicker", "temporal consistency", "zero-shot video"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model, of any family. It is cloned, not changed.",
                ),
                io.Float.Input(
                    "scale",
                    default=100.0,
                    min=0.0,
                    max=100000.0,
                    step=10.0,
                    round=0.001,
                    tooltip="How strongly each frame is pulled towards the previous one. 0: not at all. 100: the "
                    "authors' value for frames of 512 × 512; raise it in proportion to the area of larger frames. "
                    "Lower it if motion stops or smears.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When it stops: 0 is the first sampling step, 1 the last. 0.5 is the paper's value: later "
                    "steps draw details, which the pull would blur. Raise it if details flicker.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, which now pulls each frame towards the previous one.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, scale: float = 100.0, end_percent: float = 0.5) -> io.NodeOutput:
        return io.NodeOutput(updated(model, scale, end_percent, cls.node_name))


NODES = [Pix2VideoGuidance]
