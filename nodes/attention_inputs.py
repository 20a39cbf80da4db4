"""Inputs that every node on the attention tap has: which layers, from when to when."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.sites import Kind
from ..attention.tap import tap
from ..attention.technique import Technique
from .node import Node

CATEGORY = "coherence/attention"


def layers_input() -> io.String.Input:
    return io.String.Input(
        "layers",
        default="*",
        tooltip="Which attention layers. '*' is all; else pieces separated by commas: 'middle', 'input.4', "
        "'output.3-8'. Narrow it when the effect is too strong: 'output' keeps composition free, 'input, middle' "
        "keeps detail free.",
    )


def pool_input(optional: bool = False) -> io.Int.Input:
    return io.Int.Input(
        "pool",
        default=2,
        min=1,
        max=16,
        optional=optional,
        advanced=optional,
        tooltip="Size of fine_coarse's coarse patches, 1 to 16 tokens wide and high. 1 is full attention among all "
        "frames. Raise it for long clips or large pictures: memory falls with its square.",
    )


def percent_inputs() -> list[io.Float.Input]:
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where in sampling it sets in: 0 is the first step (pure noise), 1 the last. Raise it to let the "
            "first steps lay out every frame on its own.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where in sampling it stops: 0 is the first step, 1 the last. Lower it to let the last steps "
            "draw every frame's details on their own.",
        ),
    ]


def tapped(
    model: ModelPatcher,
    technique: Technique,
    node: type[Node],
    kinds: Sequence[Kind],
    layers: str,
    start_percent: float,
    end_percent: float,
    by_row: bool = False,
) -> io.NodeOutput:
    """The node's output: a clone of ``model`` with ``technique`` on it; the log echoes the layers that matched."""
    name = node.node_name
    clone, sites = tap(
        model,
        technique,
        layers=layers,
        kinds=kinds,
        asked_by=name,
        by_row=by_row,
        start_percent=start_percent,
        end_percent=end_percent,
    )
    logging.info("%s: %d layers: %s", name, len(sites), ", ".join(site.name for site in sites))
    return io.NodeOutput(clone)
