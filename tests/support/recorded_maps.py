"""Attention maps of a run."""

from __future__ import annotations

import torch
from coherence.samplers.measure import record_maps


def maps_of(model, start, step=0, layer="middle", threshold=1.0):
    with torch.inference_mode():
        return record_maps(model, start, step, layer, threshold, "test")
