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
        io.Model.Input("model", tooltip="The model, of any supported family. It is cloned, not changed."),
        perturbed_layers_input(),
        io.Combo.Input(
            "guidance",
            options=list(GUIDANCES),
            default="U-I",
            tooltip="The direction of guidance. U-I: away from identity, towards uniform attention (the paper's; 4 "
            "branches per step). A-I: away from identity (perturbed attention guidance; 3). U-A: towards uniform (3). "
            "The strategies change CFG itself. strategy 1: the negative gets identity maps (3). strategy 3: the "
            "positive gets uniform maps, plus A-I (4). strategy 4: the positive gets uniform maps (2, as in plain "
            "CFG).",
        ),
        io.Float.Input(
            "scale",
            default=2.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip="Strength of the guidance (the paper's λ). 0: plain CFG, whatever the guidance. 1 to 4 is usual; "
            "lower it if colours burn out or shapes tear. Strategies 1 and 4 have no λ: any value above 0 turns them "
            "on.",
        ),
        *percent_inputs(),
        io.Float.Input(
            "rescale",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="How much of the contrast added by guidance is removed. 0: none. 1: down to the contrast of the "
            "prediction without guidance. Raise it if a high scale or cfg burns out colours.",
        ),
    ]


class IEGuidanceCFG(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IEGuidanceCFG",
            display_name="IE Guidance (IE-Adapt)",
            category=CATEGORY,
            description="Guidance for pictures and clips without training: it steers every step by comparing the "
            "registered layers' output under uniform and identity attention. For any sampler; put it last, just "
            "before the sampler.",
            search_aliases=ALIASES,
            inputs=guidance_inputs(),
            outputs=[io.Model.Output(tooltip="The model, which now samples with guidance.")],
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
            description="IE Guidance as a guider for SamplerCustomAdvanced, where you choose noise, sampler and "
            "sigmas yourself.",
            search_aliases=[*ALIASES, "guider", "SamplerCustomAdvanced"],
            inputs=[
                *guidance_inputs(),
                io.Conditioning.Input(
                    "positive", tooltip="What to draw: the prompt, with any masks, areas or ControlNet."
                ),
                io.Conditioning.Input("negative", tooltip="What to avoid; an empty prompt is enough."),
                cfg_input(
                    8.0,
                    "How closely to follow the prompt (the paper's ω, 9 there). At 1 the negative is skipped, which "
                    "saves its cost; strategy 1 needs the negative.",
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
