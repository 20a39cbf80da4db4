"""MomentumOfRun, SaveMomentum and LoadMomentum: pass momentum from one run to the next."""

from __future__ import annotations

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.tap import kept_runs
from ..files import momentum_file
from ..files.saved import SavedFiles
from ..techniques.kept import Momentum
from .checks import InputError
from .inputs import ATTENTION, MomentumType
from .node import Node
from .saved_files import LoadingNode, SavingNode

SAVED = SavedFiles(momentum_file, "saved momentum", "SaveMomentum")


class MomentumOfRun(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MomentumOfRun",
            display_name="Momentum of Run",
            category=ATTENTION,
            description="Gets what Temporal Momentum Attention kept from a run: the averages of keys and values at the "
            "last frame. Connect it to previous of a second Temporal Momentum Attention, whose clip then continues "
            "without a seam.",
            search_aliases=["continue clip", "extend video", "long clip", "seamless", "momentum state"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that was sampled, with Temporal Momentum Attention and keep turned on: the one "
                    "that the sampler's guider has.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The output of that sampler, unchanged. It identifies the run, and makes this node wait "
                    "until the run has ended.",
                ),
            ],
            outputs=[
                MomentumType.Output(
                    "momentum",
                    tooltip="For the previous input of the next clip's Temporal Momentum "
                    "Attention, or for SaveMomentum.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, latent: dict) -> io.NodeOutput:
        samples = latent["samples"]
        runs = kept_runs(model)
        if len(runs) != 1:
            raise InputError(
                f"model: expected exactly one TemporalMomentumAttention with keep turned on, got {len(runs)}. Turn "
                "keep on in one, and connect the model that the sampler's guider uses."
            )
        if samples.is_nested:
            raise InputError(
                "latent holds video and sound, expected a batch of pictures. Connect the output of a sampler that ran "
                "an image model."
            )
        momentum = runs[0].of(samples)
        logging.info("%s: %s", cls.node_name, momentum.said())
        return io.NodeOutput(momentum)


class SaveMomentum(SavingNode):
    files, listed_as = SAVED, "momenta"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveMomentum",
            display_name="Save Momentum",
            category=ATTENTION,
            description="Saves the momentum of a run as a safetensors file in the output folder, so that a clip can be "
            "continued later, or on another machine. Save the noise too: the latent from Noise Frames.",
            search_aliases=["export momentum", "write momentum", "continue clip later", "momentum state"],
            is_output_node=True,
            inputs=[
                MomentumType.Input("momentum", tooltip="The momentum of a run, from Momentum of Run."),
                cls.prefix_input("momentum/clip", "Name it after the clip. The file may take several GiB."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, momentum: Momentum, filename_prefix: str) -> io.NodeOutput:
        return cls.save(momentum, filename_prefix)


class LoadMomentum(LoadingNode):
    files = SAVED

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadMomentum",
            display_name="Load Momentum",
            category=ATTENTION,
            description="Loads momentum that SaveMomentum wrote. Connect it to previous of Temporal Momentum "
            "Attention; the new clip then continues from the last frame of the saved run.",
            search_aliases=["import momentum", "read momentum", "continue clip", "momentum state"],
            inputs=[cls.file_input()],
            outputs=[MomentumType.Output("momentum", tooltip="For the previous input of Temporal Momentum Attention.")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        momentum = cls.files.load(file)
        logging.info("%s: %s", cls.node_name, momentum.said())
        return io.NodeOutput(momentum)


NODES = [MomentumOfRun, SaveMomentum, LoadMomentum]
