"""The register (IE-Adapt §3): measure every attention layer, choose layers by it, keep the choice."""

from __future__ import annotations

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..attention.registry import (
    PRECISIONS,
    SELECTABLE,
    AttentionRegistry,
    Choice,
    Measurement,
    Order,
    Precision,
    Ranking,
    model_names,
    named_registry,
    ranked_registry,
    reselect,
)
from ..attention.sites import select_sites, sites_of
from ..files import registry_file
from ..files.saved import SavedFiles
from ..samplers.measure import Start, measure_layers, parse_steps
from .charts import drawn
from .inputs import ATTENTION, Registry, ranking_inputs, registry_input, start_inputs
from .node import Node
from .register_chart import draw_registry
from .saved_files import LoadingNode, SavingNode

REGISTRIES = SavedFiles(registry_file, "a saved registry", "SaveAttentionRegistry")


def _chart_output() -> io.Output:
    return io.Image.Output(
        "chart",
        tooltip="Energy, energy proportion and entropy of every self-attention layer, with the selected ones marked.",
    )


def _log_selected(node: str, registry: AttentionRegistry) -> None:
    chosen = [
        each.name if each.selected_heads is None else f"{each.name} (heads {', '.join(map(str, each.selected_heads))})"
        for each in registry.layers
        if each.selected
    ]
    logging.info("%s: %d layers: %s", node, len(chosen), ", ".join(chosen))


class EntropyRegister(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyRegister",
            display_name="Entropy Register (IE-Adapt)",
            category=ATTENTION,
            description="Measures how evenly each attention layer of a model attends (entropy) and how much it "
            "smooths (energy), draws a chart, and selects layers for guidance or editing. Costs one model call.",
            search_aliases=[
                "attention entropy",
                "ie-adapt",
                "attention analysis",
                "layer selection",
                "attention energy",
            ],
            inputs=[
                *start_inputs(),
                *ranking_inputs(),
                io.String.Input(
                    "measure_steps",
                    default="0",
                    tooltip="The steps to measure, counted from 0; the result is their mean. '0' costs one model "
                    "call, '0, 5-8' runs nine steps, 'all' the whole run. Later steps show structure rather than "
                    "noise.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="exact",
                    advanced=True,
                    tooltip="exact: every row of every map, at about the cost of a second attention. sampled: 256 "
                    "rows of each map, with a 95% interval in the report; for very long clips.",
                ),
                io.Boolean.Input(
                    "live",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Off: nodes that take the registry act on the selected layers at every step. On: they rank "
                    "the layers again at every step, by the entropy of the step before and separately for each prompt; "
                    "the first step uses the selection made here. Turn it on if the ranking changes during sampling; "
                    "measure_steps 'all' shows that in the chart. Edits go by the source's maps.",
                ),
                io.Boolean.Input(
                    "per_head",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Off: whole layers are selected. On: single attention heads; count and percent then count "
                    "heads. Turn it on for a gentler effect, or if heads of one layer differ in the chart.",
                ),
            ],
            outputs=[
                Registry.Output("registry", tooltip="The layers, their measurements and the selection."),
                _chart_output(),
                io.String.Output("report", tooltip="Every attention layer with its measurements, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list,
        noise,
        sigmas: Tensor,
        latent_image: dict,
        kind: Choice,
        select: Order,
        count: int,
        percent: float,
        measure_steps: str,
        precision: Precision,
        live: bool = False,
        per_head: bool = False,
    ) -> io.NodeOutput:
        start = Start(conditioning, noise, sigmas, latent_image)
        steps = parse_steps(measure_steps, start.steps)
        sites, figures = measure_layers(model, start, steps, precision, cls.node_name)
        measurement = Measurement(
            steps, tuple(sigmas[list(steps)].tolist()), precision, noise.seed, tuple(latent_image["samples"].shape)
        )
        ranking = Ranking(kind, select, count, percent, live=live, per_head=per_head)
        registry = ranked_registry(*model_names(model), sites, figures, ranking, measurement)
        _log_selected(cls.node_name, registry)
        return io.NodeOutput(registry, drawn(draw_registry, registry), registry_file.to_json(registry))


class SelectAttentionLayers(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SelectAttentionLayers",
            display_name="Select Attention Layers",
            category=ATTENTION,
            description="Selects attention layers by name, without measuring them. For nodes that take an attention "
            "registry.",
            search_aliases=["layer selection", "attention blocks", "choose layers"],
            inputs=[
                io.Model.Input("model", tooltip="The model that has these layers."),
                io.String.Input(
                    "layers",
                    default="middle",
                    tooltip="Names of self-attention layers, separated by commas: 'middle', 'input.4', 'output.3-8', "
                    "'blocks.10-19', 'temporal'. '*' means all. The error message lists the model's layers.",
                ),
            ],
            outputs=[Registry.Output("registry", tooltip="The layers and the selection, without measurements.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, layers: str) -> io.NodeOutput:
        sites = sites_of(model)
        chosen = select_sites(sites, layers, SELECTABLE)
        registry = named_registry(*model_names(model), sites, chosen, layers)
        _log_selected(cls.node_name, registry)
        return io.NodeOutput(registry)


class ReselectAttentionLayers(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ReselectAttentionLayers",
            display_name="Reselect Attention Layers",
            category=ATTENTION,
            description="Selects other layers from existing measurements, without a model or a new measurement.",
            search_aliases=["layer selection", "attention entropy", "choose layers"],
            inputs=[registry_input(), *ranking_inputs()],
            outputs=[
                Registry.Output("registry", tooltip="The same measurements, with the new selection."),
                _chart_output(),
            ],
        )

    @classmethod
    def execute(
        cls, registry: AttentionRegistry, kind: Choice, select: Order, count: int, percent: float
    ) -> io.NodeOutput:
        before = registry.selection if isinstance(registry.selection, Ranking) else Ranking()
        ranking = Ranking(kind, select, count, percent, live=before.live, per_head=before.per_head)
        registry = reselect(registry, ranking)
        _log_selected(cls.node_name, registry)
        return io.NodeOutput(registry, drawn(draw_registry, registry))


class SaveAttentionRegistry(SavingNode):
    files, listed_as = REGISTRIES, "registries"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveAttentionRegistry",
            display_name="Save Attention Registry",
            category=ATTENTION,
            description="Saves layers, measurements and selection as a JSON file in the output folder.",
            search_aliases=["export layers", "attention entropy", "write registry"],
            is_output_node=True,
            inputs=[
                registry_input(),
                cls.prefix_input("attention/registry", "Name it after the model."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, registry: AttentionRegistry, filename_prefix: str) -> io.NodeOutput:
        return cls.save(registry, filename_prefix)


class LoadAttentionRegistry(LoadingNode):
    files = REGISTRIES

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadAttentionRegistry",
            display_name="Load Attention Registry",
            category=ATTENTION,
            description="Loads the layers, measurements and selection that SaveAttentionRegistry wrote.",
            search_aliases=["import layers", "attention entropy", "read registry"],
            inputs=[cls.file_input()],
            outputs=[Registry.Output("registry", tooltip="The layers, their measurements and the selection.")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        registry = cls.files.load(file)
        _log_selected(cls.node_name, registry)
        return io.NodeOutput(registry)


NODES = [
    EntropyRegister,
    SelectAttentionLayers,
    ReselectAttentionLayers,
    SaveAttentionRegistry,
    LoadAttentionRegistry,
]
