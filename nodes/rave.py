"""RAVEGrid: frames drawn together in shuffled grids (RAVE, arXiv 2312.04524)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..samplers.rave import in_grids
from .inputs import seed_input
from .node import Node


class RAVEGrid(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAVEGrid",
            display_name="RAVE Grid",
            category="coherence/editing",
            description="Draws several frames as one large picture, in a new random order at every step, so that they "
            "come to share one look. For image models with any sampler; ControlNet images are arranged in the same "
            "way. Made for editing a clip with ControlNets.",
            search_aliases=["rave", "grid trick", "noise shuffling", "video to video", "zero-shot video editing"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An image model: SD1.5, SDXL, Flux and others. It is cloned, not changed.",
                ),
                io.Int.Input(
                    "grid",
                    default=3,
                    min=1,
                    max=8,
                    tooltip="Rows and columns of the large picture, 1 to 8. 3 is the paper's value: 9 frames in one "
                    "picture. The number of frames must be a multiple of grid × grid. 1 turns the node off. Lower it "
                    "if memory runs out or the model draws poorly at that size.",
                ),
                seed_input(
                    "Seeds the order of the frames at every step. The same seed gives the same clip. Change it if two "
                    "frames come out mixed up."
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, which now draws frames in grids.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, grid: int = 3, seed: int = 0) -> io.NodeOutput:
        return io.NodeOutput(in_grids(model, grid, seed, cls.node_name))


NODES = [RAVEGrid]
