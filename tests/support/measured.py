"""Figures of a model's layers."""

from __future__ import annotations

import torch
from coherence.samplers.measure import Start, measure_layers


def figures_of(model, start: Start, steps=(0,), precision="exact"):
    with torch.inference_mode():
        return measure_layers(model, start, steps, precision, "test")[1]
