"""FlowEdit: edits a clip with a flow model and two prompts, without an inversion (arXiv 2412.08629)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..attention.registry import AttentionRegistry, choice_if_any
from ..samplers.editing import Prompts
from ..samplers.flow_edit import FlowEdit as Settings
from ..samplers.flow_edit import edit_flow
from ..samplers.latents import with_samples
from ..techniques.choice import ALL_HEADS, Choice
from .inputs import EDITING, Registry, cfg_input, seed_input
from .node import Node


class FlowEdit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowEdit",
            display_name="Flow Edit",
            category=EDITING,
            description="Edits a real picture or clip with a prompt, on a flow model (Flux, SD3.5, Qwen-Image, Wan, "
            "LTXV, HunyuanVideo). It needs no inversion: each step moves the latent by the difference between the two "
            "prompts' predictions.",
            search_aliases=["flowedit", "rectified flow", "inversion-free editing", "video editing", "rf-edit"],
            inputs=[
                io.Model.Input("model", tooltip="A flow model, with its LoRAs. It is not changed."),
                io.Conditioning.Input("source", tooltip="A prompt that describes the picture or clip as it is."),
                io.Conditioning.Input(
                    "target",
                    tooltip="Prompt for the edited picture or clip: the source prompt with some words changed. It may "
                    "be longer or shorter.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt for both source and target. One whose cfg is 1 ignores it."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The picture or clip to edit, from VAE Encode. With a noise mask, only the white area "
                    "changes.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels, from a scheduler node for this model, with denoise 1. 28 to 50 steps "
                    "are usual.",
                ),
                cfg_input(
                    1.5,
                    "How strongly the source prompt is followed. Keep it well below target_cfg. Use 1 with Flux.1 dev, "
                    "whose guidance comes from FluxGuidance.",
                    name="source_cfg",
                ),
                cfg_input(
                    5.5,
                    "How strongly the target prompt is followed. Raise it if the edit does not show; lower it if "
                    "colours burn out. Use 1 with Flux.1 dev, whose guidance comes from FluxGuidance.",
                    name="target_cfg",
                ),
                io.Int.Input(
                    "skip_steps",
                    default=4,
                    min=0,
                    max=10000,
                    tooltip="Number of steps left out at the noisy end, from 0 to the scheduler's steps minus 1. Raise "
                    "it to keep more of the source's layout; lower it for larger changes.",
                ),
                io.Int.Input(
                    "averages",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="Number of noises that each step averages over, 1 to 100. More make the edit smoother, but "
                    "it takes that many times as long. 1 is the authors' choice.",
                ),
                seed_input(
                    "Seed of the noise. The same seed gives the same edit. Change it for another variant.",
                    control_after_generate=True,
                ),
                Registry.Input(
                    "registry",
                    optional=True,
                    tooltip="Layers in which the target attends as the source does, as in EntropyGuidedEdit. Connect "
                    "it to keep more of the layout and motion.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The edited picture or clip.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        source: list,
        target: list,
        negative: list,
        latent_image: dict,
        sigmas: Tensor,
        source_cfg: float,
        target_cfg: float,
        skip_steps: int,
        averages: int,
        seed: int,
        registry: AttentionRegistry | None = None,
    ) -> io.NodeOutput:
        choice: Choice = ALL_HEADS
        layers = ""
        if registry is not None:
            layers, choice = choice_if_any(model, registry, cls.node_name)
        edit = Settings(source_cfg, target_cfg, skip_steps, averages, seed)
        prompts = Prompts(source, target, negative)
        samples = edit_flow(model, prompts, edit, sigmas, latent_image, layers, cls.node_name, choice)
        return io.NodeOutput(with_samples(latent_image, samples))


NODES = [FlowEdit]
