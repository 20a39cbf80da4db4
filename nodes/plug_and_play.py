"""PlugAndPlay: an edit keeps the layout of its source (arXiv 2211.12572)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.registry import SELECTABLE, AttentionRegistry, choice_for
from ..attention.sites import features_of, select_sites, sites_of
from ..techniques import plug_and_play
from ..techniques.choice import ALL_HEADS, Choice
from .checks import InputError
from .inputs import EDITING, Registry, percent_inputs
from .node import Node
from .tapped import tapped


class PlugAndPlay(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PlugAndPlay",
            display_name="Plug-and-Play (PnP)",
            category=EDITING,
            description="Lets an edit keep the layout of its source: the target attends as the source does, and takes "
            "the features of one residual block. Connect it before EntropyGuidedEdit. Features need a UNet (SD1.5, "
            "SD2, SDXL).",
            search_aliases=["pnp", "plug-and-play", "feature injection", "video editing", "attention injection"],
            inputs=[
                io.Model.Input("model", tooltip="The model of the edit. It is cloned, not changed."),
                io.Boolean.Input(
                    "features",
                    default=True,
                    tooltip="On: the target also takes the source's output of one residual block, the one at the first "
                    "of the layers. That holds the layout more firmly. Turn it off for models other than UNets, or if "
                    "shapes cannot change enough.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    tooltip="The self-attention layers in which the target attends as the source does. Empty: the "
                    "paper's choice, a UNet's decoder without its first layer ('output.4-11' of SD1.5). Otherwise "
                    "names separated by commas. Fewer layers leave the target freer.",
                ),
                *percent_inputs(),
                Registry.Input(
                    "registry",
                    optional=True,
                    tooltip="Layers from EntropyRegister or SelectAttentionLayers. If connected, layers is ignored.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for EntropyGuidedEdit or FlowEdit.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        features: bool = True,
        layers: str = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        registry: AttentionRegistry | None = None,
    ) -> io.NodeOutput:
        choice: Choice = ALL_HEADS
        if registry is not None:
            layers, choice = choice_for(model, registry, cls.node_name)
        elif not layers.strip():
            layers = ", ".join(site.name for site in select_sites(sites_of(model), "output", ["spatial"])[1:])
        technique = plug_and_play.PlugAndPlay(choice)
        # of layers that are ranked anew at each step, the block is that of those which were selected
        blocks = _first_block(model, layers if registry is None else registry.selector) if features else ""
        return tapped(model, technique, cls, SELECTABLE, layers, start_percent, end_percent, features=blocks)


def _first_block(model: ModelPatcher, layers: str) -> str:
    """The residual block at the first of ``layers``. InputError where there is none."""
    first = select_sites(sites_of(model), layers, SELECTABLE)[0].name
    place = ".".join(first.split(".")[:2])
    for block in features_of(model.get_model_object("diffusion_model")):
        if block.name.startswith(f"{place}.res"):
            return block.name
    raise InputError(
        f"features: there is no residual block at {first}, expected a UNet (SD1.5, SD2, SDXL). Turn features off, or "
        "choose other layers."
    )


NODES = [PlugAndPlay]
