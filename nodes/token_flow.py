"""TokenFlow: an edit moves as its source does (arXiv 2307.10373)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..techniques import tokenflow
from .inputs import EDITING, frames_per_batch_input, layers_input, percent_inputs, seed_input
from .node import Node
from .tapped import tapped


class TokenFlow(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenFlow",
            display_name="Token Flow (TokenFlow)",
            category=EDITING,
            description="Lets an edit move as its source does: a few keyframes are edited together, and all other "
            "frames take their details from these, matching places by the source. Connect it before "
            "EntropyGuidedEdit. For SD1.5, SD2, SDXL, Anima and Cosmos-Predict2; the latent's batch is the "
            "clip.",
            search_aliases=["tokenflow", "video editing", "temporal consistency", "keyframes", "diffusion features"],
            inputs=[
                io.Model.Input("model", tooltip="An image model: SD1.5, SD2, SDXL, Anima. It is cloned, not changed."),
                io.Int.Input(
                    "chunk",
                    default=8,
                    min=1,
                    max=4096,
                    tooltip="Frames per keyframe, 1 or more. 1: every frame is a keyframe and attends to all. 8: the "
                    "authors' choice. Lower it if fast motion smears; more keyframes cost more time and memory.",
                ),
                seed_input(
                    "Seeds the choice of keyframes, which changes at every step. The same seed gives the same clip. "
                    "Change it if one frame's look dominates."
                ),
                layers_input(of_transformers=False),
                *percent_inputs(),
                frames_per_batch_input(
                    "With 8, memory is that of 8 frames, or of all keyframes if they are more, and keyframes are "
                    "computed twice."
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for EntropyGuidedEdit or FlowEdit.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        chunk: int = 8,
        seed: int = 0,
        layers: str = "*",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        frames_per_batch: int = 0,
    ) -> io.NodeOutput:
        technique = tokenflow.TokenFlow(chunk, seed, frames_per_batch)
        return tapped(model, technique, cls, ["spatial"], layers, start_percent, end_percent, by_row=True)


NODES = [TokenFlow]
