"""PerturbAttention: what a model draws without the attention of some layers (IE-Adapt §3.1)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.registry import SELECTABLE, AttentionRegistry, choice_for
from ..techniques.perturbation import IDENTITY, UNIFORM, Perturbation
from .inputs import ATTENTION, percent_inputs, perturbed_layers_input
from .node import Node
from .tapped import tapped


class PerturbAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerturbAttention",
            display_name="Perturb Attention (IE-Adapt)",
            category=ATTENTION,
            description="Replaces the attention maps of the registered layers in every branch, to show what these "
            "layers do: by the uniform map, where each token attends to all equally, or by the identity, where it "
            "attends only to itself. To improve pictures this way, use IEGuidanceCFG.",
            search_aliases=["ie-adapt", "perturbed attention", "identity attention", "uniform attention", "ablation"],
            inputs=[
                io.Model.Input("model", tooltip="The model, of any supported family. It is cloned, not changed."),
                perturbed_layers_input(),
                io.Combo.Input(
                    "matrix",
                    options=["uniform", "identity", "blend"],
                    default="uniform",
                    tooltip="What replaces the map. uniform: each token attends to all equally, so structure is lost. "
                    "identity: each token attends only to itself, so neighbours no longer agree. blend: alpha times "
                    "identity, the rest uniform.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the identity map in the blend, 0 (uniform) to 1 (identity). Used only if matrix "
                    "is blend. Change it to move between the two.",
                ),
                *percent_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model, with these layers perturbed.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        registry: AttentionRegistry,
        matrix: str,
        alpha: float = 0.5,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        layers, choice = choice_for(model, registry, cls.node_name)
        technique = Perturbation({"uniform": UNIFORM, "identity": IDENTITY}.get(matrix, alpha), choice)
        return tapped(model, technique, cls, SELECTABLE, layers, start_percent, end_percent)


NODES = [PerturbAttention]
