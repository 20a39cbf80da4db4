"""EntropyGuidedEdit: IE-Adapt's editing (§4.2), and the replacements it is compared with."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy_api.latest import io
from torch import Tensor

from ..attention.registry import AttentionRegistry, require_model
from ..samplers.editing import REPLACES, Edit, Prompts, Replace, sample_edit
from ..samplers.latents import with_samples
from .inputs import Registry, cfg_input, percent_inputs
from .node import Node


class EntropyGuidedEdit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyGuidedEdit",
            display_name="Entropy-Guided Edit (IE-Adapt)",
            category="coherence/editing",
            description="Edits a clip by a prompt: samples source and target together, and lets the target attend as "
            "the source does in the layers of the registry, so that layout and motion stay. For clips that the model "
            "makes, and for real ones after inversion.",
            search_aliases=[
                "video editing",
                "ie-adapt",
                "prompt-to-prompt",
                "masactrl",
                "attention injection",
                "attention replacement",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model, with its LoRAs and motion modules. It is not changed."),
                io.Conditioning.Input(
                    "source", tooltip="The prompt of the clip as it is; of a real clip, that it was inverted with."
                ),
                io.Conditioning.Input(
                    "target", tooltip="The prompt of the clip as it shall be: the source's, with the words changed."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt of both clips. A clip with cfg 1 does not use it."
                ),
                Registry.Input(
                    "registry",
                    tooltip="The layers in which the target attends as the source: from EntropyRegister with select "
                    "lowest, count 0, percent 50. More layers keep more of the source. cross_map does not use it.",
                ),
                io.Noise.Input(
                    "noise",
                    tooltip="The noise that both clips start from: RandomNoise for a generated clip, DisableNoise "
                    "after an inversion, NoiseFromLatent after that of a flow model.",
                ),
                io.Sampler.Input(
                    "sampler",
                    tooltip="A sampler without noise of its own: euler, ddim, heun, dpmpp_2m, uni_pc. After an "
                    "inversion euler, which walks the same way back. Ancestral and SDE samplers are refused.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels of both clips, from a scheduler; after an inversion the same ones.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="What both clips start from: an empty latent for a generated clip, the inverted latent of "
                    "a real one.",
                ),
                cfg_input(
                    7.5,
                    "How strongly the target follows its prompt. Raise it if the edit does not show, lower it "
                    "if colours burn.",
                ),
                cfg_input(
                    1.0,
                    "How strongly the source follows its prompt. 1 for a real clip, as it was inverted; the "
                    "same as cfg for a generated one. At 1 it costs a branch less in every step.",
                    name="source_cfg",
                ),
                io.Combo.Input(
                    "replace",
                    options=list(REPLACES),
                    default="map",
                    tooltip="What the target takes from the source. map: where it looks (the paper's). key_value: "
                    "what it sees (MasaCtrl), for other poses of the same thing. value: the contents alone. "
                    "cross_map: where the words go, in all cross-attention layers (Prompt-to-Prompt).",
                ),
                *percent_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the target may differ: white changes, black keeps the source's latent at every "
                    "step. Any size, one for all frames or one for each.",
                ),
            ],
            outputs=[
                io.Latent.Output("edited", tooltip="The clip of the target prompt."),
                io.Latent.Output(
                    "source",
                    tooltip="The clip of the source prompt: after an inversion, the reconstruction of the real one.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        source: list,
        target: list,
        negative: list,
        registry: AttentionRegistry,
        noise,
        sampler: Sampler,
        sigmas: Tensor,
        latent_image: dict,
        cfg: float,
        source_cfg: float,
        replace: Replace,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        if replace != "cross_map":  # which does not use it
            require_model(registry, model, cls.node_name)
        edit = Edit(registry.selector, replace, cfg, source_cfg, start_percent, end_percent, mask)
        prompts = Prompts(source, target, negative)
        clips = sample_edit(model, prompts, edit, noise, sampler, sigmas, latent_image, cls.node_name)
        return io.NodeOutput(*(with_samples(latent_image, clip) for clip in clips))


NODES = [EntropyGuidedEdit]
