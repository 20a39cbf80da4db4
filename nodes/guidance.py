"""IEGuidanceCFG and IEGuider: IE-Adapt's guidance from uniform and identity attention (§4.1, suppl. 8.1)."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from comfy_api.latest import io

from ..attention.registry import AttentionRegistry
from ..samplers.ie_guidance import GUIDANCES, Guidance, guide
from .inputs import cfg_input, percent_inputs, perturbed_layers_input
from .node import Node

CATEGORY = "coherence/guidance"
ALIASES = ["ie-adapt", "perturbed attention guidance", "pag", "entropy guidance", "uniform attention", "U-I"]


def guidance_inputs() -> list[io.Input]:
    """What both nodes have in common."""
    return [
        io.Model.Input("model", tooltip="The model, of any family of the pack. It is cloned, not changed."),
        perturbed_layers_input(),
        io.Combo.Input(
            "guidance",
            options=list(GUIDANCES),
            default="U-I",
            tooltip="What is steered along. U-I: away from identity, towards uniform attention (the paper's; 4 "
            "branches a step). A-I: away from identity (perturbed attention guidance; 3). U-A: towards uniform (3). "
            "Strategies change the positive or negative of CFG itself: strategy 1 takes the negative with identity "
            "maps (3), 3 the positive with uniform maps, plus A-I (4), 4 the positive with uniform maps (2, as plain "
            "CFG).",
        ),
        io.Float.Input(
            "scale",
            default=2.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip="How far to steer (the paper's λ). 0: plain CFG, whatever the guidance. 1 to 4 is usual; lower "
            "it where colours burn or shapes tear. Strategies 1 and 4 have no λ and only ask whether it is 0.",
        ),
        *percent_inputs(),
        io.Float.Input(
            "rescale",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="How much of the contrast that guidance adds is taken back: 0 none, 1 down to the contrast of "
            "the prediction without guidance. Raise it where a high scale or cfg burns colours.",
        ),
    ]


class IEGuidanceCFG(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IEGuidanceCFG",
            display_name="IE Guidance (IE-Adapt)",
            category=CATEGORY,
            description="Better pictures and clips from the model you have: steers every step by what the registered "
            "layers' attention does, comparing uniform with identity maps. For any sampler; put it last before it.",
            search_aliases=ALIASES,
            inputs=guidance_inputs(),
            outputs=[io.Model.Output(tooltip="The model, sampling with guidance.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        registry: AttentionRegistry,
        guidance: Guidance,
        scale: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        rescale: float = 0.0,
    ) -> io.NodeOutput:
        span = {"start_percent": start_percent, "end_percent": end_percent}
        return io.NodeOutput(guide(model, registry, guidance, scale, asked_by=cls.node_name, rescale=rescale, **span))


class IEGuider(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IEGuider",
            display_name="IE Guider (IE-Adapt)",
            category=CATEGORY,
            description="IE Guidance as a guider, for SamplerCustomAdvanced: with its own noise, sampler and sigmas.",
            search_aliases=[*ALIASES, "guider", "SamplerCustomAdvanced"],
            inputs=[
                *guidance_inputs(),
                io.Conditioning.Input(
                    "positive", tooltip="What to draw: the prompt, with masks, areas or a ControlNet if it has them."
                ),
                io.Conditioning.Input("negative", tooltip="What to keep away from; an empty prompt will do."),
                cfg_input(
                    8.0,
                    "How closely to follow the prompt (the paper's ω, 9 there). 1 leaves out the negative and "
                    "saves its cost; strategy 1 cannot do without it.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="The guided model with its prompts, for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        registry: AttentionRegistry,
        guidance: Guidance,
        scale: float,
        positive: Any,
        negative: Any,
        cfg: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        rescale: float = 0.0,
    ) -> io.NodeOutput:
        span = {"start_percent": start_percent, "end_percent": end_percent}
        guider = CFGGuider(guide(model, registry, guidance, scale, asked_by=cls.node_name, rescale=rescale, **span))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


NODES = [IEGuidanceCFG, IEGuider]
