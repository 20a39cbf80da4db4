"""Inflated models, with weights or without."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from coherence.attention.forms import InflationWeights, expected_shapes, inflated
from coherence.attention.inflation import transformer_layers
from coherence.techniques.stam import unit
from tiny_models import sample
from watching import DEMO


def random_weights(model, form, scale=0.3, layers="*"):
    """Weights with a visible effect: an open gate, deltas that move the queries."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in transformer_layers(model, layers):
        for name, shape in expected_shapes(form, layer).items():
            tensors[name] = (
                torch.randn(shape, generator=generator) * shape[-1] ** -0.5 if shape else torch.tensor(scale)
            )
            if name.endswith(("stam.to_v.weight", "stam.to_out.weight")):
                tensors[name] = unit(tensors[name], form.norm)
    return InflationWeights(form, "DemoConfig", tensors, steps=1, frames=4)


def run(model, shape=DEMO.latent_shape, steps=2, **how):
    return sample(model, SimpleNamespace(**{**vars(DEMO), "latent_shape": shape}), steps=steps, **how)


def put(model, form, weights=None, layers="*", strength=1.0):
    return inflated(model, form, weights, layers=layers, strength=strength, asked_by="test")
