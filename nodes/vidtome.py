"""VidToMe: similar tokens of a clip's frames are merged before they attend (arXiv 2312.10656)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..techniques import vidtome
from .inputs import ATTENTION, layers_input, percent_inputs, seed_input
from .node import Node
from .tapped import tapped


class VidToMe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidToMe",
            display_name="Video Token Merging (VidToMe)",
            category=ATTENTION,
            description="Merges similar tokens of the frames of a clip before they attend, so that frames share their "
            "details and fewer tokens attend. For SD1.5, SD2, SDXL, Anima and Cosmos-Predict2; the latent's batch is "
            "the clip.",
            search_aliases=["vidtome", "token merging", "tome", "zero-shot video editing", "temporal consistency"],
            inputs=[
                io.Model.Input("model", tooltip="An image model: SD1.5, SD2, SDXL, Anima. It is cloned, not changed."),
                io.Int.Input(
                    "chunk",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="How many frames merge with each other, 1 or more. More make neighbouring frames more "
                    "alike and cost more memory. With 1, frames merge only from chunk to chunk, by global_ratio.",
                ),
                io.Float.Input(
                    "local_ratio",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of tokens that are merged within a chunk, each into the most similar token of one "
                    "of its frames. 0: no merging at all, plain attention. 0.9: the authors' choice. Lower it if "
                    "details are lost.",
                ),
                io.Float.Input(
                    "global_ratio",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the tokens that are merged from chunk to chunk, which keeps a long clip "
                    "together. 0: chunks stay separate. 0.8: the authors' choice. Lower it if the picture degrades.",
                ),
                seed_input(
                    "Seeds the chunks and the frames that the others merge into, which change at every step. The same "
                    "seed gives the same clip. Change it if one frame's look dominates."
                ),
                layers_input(of_transformers=False),
                *percent_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model, with merged tokens.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        chunk: int = 4,
        local_ratio: float = 0.9,
        global_ratio: float = 0.8,
        seed: int = 0,
        layers: str = "*",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        technique = vidtome.VidToMe(chunk, local_ratio, global_ratio, seed)
        return tapped(model, technique, cls, ["spatial"], layers, start_percent, end_percent, by_row=True)


NODES = [VidToMe]
