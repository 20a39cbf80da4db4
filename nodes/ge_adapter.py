"""GE-Adapter (§3.2, §3.3): its LoRA on the first steps, its tokens in the prompt, and its files."""

from __future__ import annotations

import logging
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..files import ge_adapter_file
from ..files.saved import SavedFiles
from ..samplers.lora_steps import with_lora
from ..training.ge_adapter import GEAdapter
from ..training.low_rank import require_image_unet
from ..training.token_conditioning import with_tokens
from .inputs import TUNING, Adapter, adapter_input
from .node import Node
from .saved_files import LoadingNode, SavingNode

ADAPTERS = SavedFiles(ge_adapter_file, "a saved adapter", "SaveGEAdapter")


class GEAdapterApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GEAdapterApply",
            display_name="GE-Adapter Apply",
            category=TUNING,
            description="Applies a GE-Adapter's LoRA to the first sampling steps, where it was trained to make "
            "neighbouring frames change evenly. For image models with a UNet; the latent's batch is the clip.",
            search_aliases=["ge-adapter", "temporal lora", "frame consistency", "video adapter"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A model of the class that the adapter was trained on. It is cloned, not changed."
                ),
                adapter_input(),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the adapter's LoRA; GE-Adapter Tokens scales the tokens. 0.5 is the paper's "
                    "choice, 0 the plain model. Raise it for steadier clips; lower it if pictures turn soft.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="When it starts: 0 is the first sampling step (pure noise), 1 the last. The paper starts "
                    "at 0.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="When it stops: 0 is the first sampling step, 1 the last. 0.1 is the paper's choice; 0.5 "
                    "keeps frames more alike but loses detail.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with the adapter active at these steps.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: GEAdapter,
        strength: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        require_image_unet(model.model)
        trained_on = adapter.training.base
        clone = with_lora(model, adapter.lora, strength, start_percent, end_percent, cls.node_name, trained_on)
        count = len(adapter.lora) // 3
        logging.info("%s: %d projections, %d parameters", cls.node_name, count, adapter.parameters()["lora"])
        return io.NodeOutput(clone)


class GEAdapterTokens(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GEAdapterTokens",
            display_name="GE-Adapter Tokens",
            category=TUNING,
            description="Puts a GE-Adapter's learned tokens before a prompt: tokens that all frames share and, with a "
            "CLIP vision output, tokens for each frame. Each frame then gets its own conditioning.",
            search_aliases=["ge-adapter", "prompt tokens", "image prompt", "video prompt", "prefix tokens"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt, from the text encoder of the adapter's model. Use this node for both the "
                    "positive and the negative prompt; if their lengths differ, each step takes two model calls.",
                ),
                adapter_input(),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="The clip's frames, encoded by CLIPVisionEncode with the encoder used in training: as "
                    "many as the latent has, or one picture for all. Without it, only the shared tokens are added.",
                ),
                io.Float.Input(
                    "shared_weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Factor on the tokens that all frames share, 0 to 4. 1: as learned. 0 leaves them out. "
                    "Lower it if they drown out the prompt.",
                ),
                io.Float.Input(
                    "frame_weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Factor on the tokens of each frame, 0 to 4. 1: as learned. 0 leaves them out. Raise it to "
                    "keep more of the given clip; lower it if the edit cannot follow a new prompt.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", tooltip="[shared; per-frame; text] on the sequence axis, one row per frame."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: list,
        adapter: GEAdapter,
        clip_vision_output: Any = None,
        shared_weight: float = 1.0,
        frame_weight: float = 1.0,
    ) -> io.NodeOutput:
        hidden = None if clip_vision_output is None else clip_vision_output.last_hidden_state
        return io.NodeOutput(with_tokens(conditioning, adapter, hidden, shared_weight, frame_weight))


class SaveGEAdapter(SavingNode):
    files, listed_as = ADAPTERS, "adapters"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveGEAdapter",
            display_name="Save GE-Adapter",
            category=TUNING,
            description="Saves a trained GE-Adapter as a safetensors file in the output folder. If it is in the loras "
            "folder there, ComfyUI's own LoRA loaders find it too and load its LoRA.",
            search_aliases=["export adapter", "write lora", "ge-adapter"],
            is_output_node=True,
            inputs=[
                adapter_input(),
                cls.prefix_input(
                    "loras/ge_adapter",
                    "Keep 'loras/' for ComfyUI's LoRA loaders; name it after the model and the clips.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, adapter: GEAdapter, filename_prefix: str) -> io.NodeOutput:
        return cls.save(adapter, filename_prefix)


class LoadGEAdapter(LoadingNode):
    files = ADAPTERS

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadGEAdapter",
            display_name="Load GE-Adapter",
            category=TUNING,
            description="Loads a GE-Adapter that SaveGEAdapter wrote: its LoRA, its tokens, and its training record.",
            search_aliases=["import adapter", "read lora", "ge-adapter"],
            inputs=[cls.file_input()],
            outputs=[Adapter.Output("adapter", tooltip="The adapter, for GEAdapterApply and GEAdapterTokens.")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        adapter = cls.files.load(file)
        parts = ", ".join(f"{count} parameters of {part}" for part, count in adapter.parameters().items())
        training = adapter.training
        logging.info("%s: %s; %s, %d steps", cls.node_name, parts, training.base, training.steps)
        return io.NodeOutput(adapter)


NODES = [GEAdapterApply, GEAdapterTokens, SaveGEAdapter, LoadGEAdapter]
