"""What every node does that puts a technique on the attention tap."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.sites import Kind
from ..attention.tap import tap
from ..techniques.technique import Technique
from .node import Node


def tapped(
    model: ModelPatcher,
    technique: Technique,
    node: type[Node],
    kinds: Sequence[Kind],
    layers: str,
    start_percent: float,
    end_percent: float,
    by_row: bool = False,
    features: str = "",
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
        features=features,
    )
    logging.info("%s: %d layers: %s", name, len(sites), ", ".join(site.name for site in sites))
    return io.NodeOutput(clone)
