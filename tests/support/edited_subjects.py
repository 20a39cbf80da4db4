"""What the nodes that go onto a model before an edit do there, for the table of families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from coherence.attention.sites import features_of, sites_of
from coherence.nodes.editing import EntropyGuidedEdit
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.plug_and_play import PlugAndPlay
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from watching import difference


def edited(s: Any, model: Any, registry: Any) -> torch.Tensor:
    source, negative = s.conditioning
    how = (registry, Noise_RandomNoise(3), sampler_object("euler"), s.late, s.empty, 1.0, 1.0, "map")
    return EntropyGuidedEdit.execute(model, source, s.target, negative, *how).result[0]["samples"]


def edited_by(node: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, float]]:
    """Of a node that gives a MODEL for an edit: the change of what is edited."""

    def trial(s: Any) -> tuple[Any, float]:
        first = next(site.name for site in sites_of(s.model) if site.kind in ("spatial", "joint"))
        registry = SelectAttentionLayers.execute(s.model, first)[0]  # where the prompts have not told yet
        out = edited(s, node(s)[0], registry)
        return out, difference(out, edited(s, s.model, registry))

    return trial


def plug_and_play(s: Any) -> Any:
    features = bool(features_of(s.model.get_model_object("diffusion_model")))
    return PlugAndPlay.execute(s.model, features, "*")
