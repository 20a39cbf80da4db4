"""Figures and maps of a model's attention."""

from __future__ import annotations

import torch
from coherence.samplers.measure import Start, measure_layers, record_maps


def figures_of(model, start: Start, steps=(0,), precision="exact"):
    with torch.inference_mode():
        return measure_layers(model, start, steps, precision, "test")[1]


def maps_of(model, start, step=0, layer="middle", threshold=1.0):
    with torch.inference_mode():
        return record_maps(model, start, step, layer, threshold, "test")
