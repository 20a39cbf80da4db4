"""EntropyGuidedEdit: IE-Adapt's editing (§4.2), and the replacements it is compared with."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy_api.latest import io
from torch import Tensor

from ..attention.registry import AttentionRegistry, choice_if_any
from ..samplers.editing import Edit, Prompts, sample_edit
from ..samplers.latents import with_samples
from ..samplers.replacing import REPLACES, Replace
from ..samplers.trajectory import Trajectory
from ..techniques.choice import ALL_HEADS, Choice
from ..techniques.prompt_to_prompt import Alignment
from .inputs import EDITING, PromptAlignment, Registry, TrajectoryType, cfg_input, percent_inputs
from .node import Node


class EntropyGuidedEdit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyGuidedEdit",
            display_name="Entropy-Guided Edit (IE-Adapt)",
            category=EDITING,
            description="Edits a clip with a prompt. It samples source and target together, and in the registry's "
            "layers the target attends as the source does, so layout and motion stay. Works on generated clips, and "
            "on real ones after inversion.",
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
                    "source",
                    tooltip="A prompt that describes the clip as it is. For a real clip, use the prompt of "
                    "the inversion.",
                ),
                io.Conditioning.Input(
                    "target", tooltip="Prompt for the edited clip: the source prompt with some words changed."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt of both clips. A clip with cfg 1 ignores it."
                ),
                Registry.Input(
                    "registry",
                    tooltip="The layers in which the target attends as the source does: from EntropyRegister with "
                    "select lowest, count 0, percent 50. More layers keep more of the source. cross_map ignores it.",
                ),
                io.Noise.Input(
                    "noise",
                    tooltip="The noise that both clips start from: RandomNoise for a generated clip, DisableNoise "
                    "after an inversion, NoiseFromLatent after inverting with a flow model.",
                ),
                io.Sampler.Input(
                    "sampler",
                    tooltip="Any of KSamplerSelect's samplers but dpm_adaptive. Noise that it adds within its steps is "
                    "the same in both clips. After an inversion use euler, which retraces it.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels of both clips, from a scheduler. After an inversion, use the same ones.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent that both clips start from: an empty one for a generated clip, the inverted "
                    "one for a real clip.",
                ),
                cfg_input(
                    7.5,
                    "How strongly the target follows its prompt. Raise it if the edit does not show; lower it if "
                    "colours burn out.",
                ),
                cfg_input(
                    1.0,
                    "How strongly the source follows its prompt. Use 1 for a real clip, as in its inversion; use the "
                    "value of cfg for a generated one. At 1 each step needs one branch less.",
                    name="source_cfg",
                ),
                io.Combo.Input(
                    "replace",
                    options=list(REPLACES),
                    default="map",
                    tooltip="What the target takes from the source. map: where it attends (the paper's choice). "
                    "key_value: what it attends to (MasaCtrl), for other poses of the same subject. value: the "
                    "content only. cross_map: where each word applies, in all cross-attention layers "
                    "(Prompt-to-Prompt). map_and_cross: map and cross_map together. blend: like map_and_cross, but "
                    "where the edited words apply, the target keeps its own self-attention (FateZero); it needs "
                    "alignment. Without alignment, cross_map and map_and_cross need prompts with the same number of "
                    "tokens.",
                ),
                *percent_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the target may differ: white may change, black keeps the source's latent at every "
                    "step. Any size; one mask for all frames, or one per frame.",
                ),
                io.Latent.Input(
                    "target_latent",
                    optional=True,
                    tooltip="Continues an edit that stopped before the last step. Connect that edit's edited output "
                    "here and its source output to latent_image, and use the remaining sigmas and DisableNoise. Needed "
                    "for Wan 2.2's two experts.",
                ),
                TrajectoryType.Input(
                    "trajectory",
                    optional=True,
                    tooltip="From BilateralDDIMInvert. The source is then the real clip's own latent at every step "
                    "instead of a reconstruction, and comes out unchanged.",
                ),
                PromptAlignment.Input(
                    "alignment",
                    optional=True,
                    tooltip="Which words of target correspond to which words of source, from AlignPrompts; connect its "
                    "source and target, too. For cross_map, map_and_cross and blend. Needed to insert or remove words.",
                ),
            ],
            outputs=[
                io.Latent.Output("edited", tooltip="The clip of the target prompt."),
                io.Latent.Output(
                    "source",
                    tooltip="The clip of the source prompt: after an inversion, the reconstruction of the real one; "
                    "with trajectory, the real one itself.",
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
        target_latent: dict | None = None,
        trajectory: Trajectory | None = None,
        alignment: Alignment | None = None,
    ) -> io.NodeOutput:
        choice: Choice = ALL_HEADS
        layers = registry.selector
        if replace != "cross_map":  # which does not use it
            layers, choice = choice_if_any(model, registry, cls.node_name)
        edit = Edit(layers, replace, cfg, source_cfg, start_percent, end_percent, mask, alignment, choice)
        prompts = Prompts(source, target, negative)
        start = (noise, sampler, sigmas, latent_image)
        clips = sample_edit(model, prompts, edit, *start, cls.node_name, target_latent, trajectory)
        return io.NodeOutput(*(with_samples(latent_image, clip) for clip in clips))


NODES = [EntropyGuidedEdit]
