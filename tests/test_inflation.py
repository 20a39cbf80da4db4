"""Modules between a UNet's layers: STAM and Tune-A-Video's temporal attention in ComfyUI's own models."""

import pytest
import torch
from coherence.attention.forms import (
    TUNE_A_VIDEO,
    Form,
    InflationWeights,
    expected_shapes,
    inflated,
)
from coherence.attention.inflation import transformer_layers
from coherence.attention.stam import unit
from tiny_models import sample
from watching import DEMO, difference

STAM_FORM = Form("stam", "before_cross", "self")


def demo():
    from coherence.demo.model import load_model

    return load_model()


def random_weights(model, form, scale=0.3):
    """Weights that show: an open gate, deltas that move the queries."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in transformer_layers(model, "*"):
        for name, shape in expected_shapes(form, layer).items():
            tensors[name] = (
                torch.randn(shape, generator=generator) * shape[-1] ** -0.5 if shape else torch.tensor(scale)
            )
            if name.endswith(("stam.to_v.weight", "stam.to_out.weight")):
                tensors[name] = unit(tensors[name], form.norm)
    return InflationWeights(form, "DemoConfig", tensors, steps=1, frames=4)


def run(model, **how):
    return sample(model, DEMO, steps=2, **how)


def put(model, form, weights=None, layers="*", strength=1.0):
    return inflated(model, form, weights, layers=layers, strength=strength, asked_by="test")


@pytest.mark.parametrize("position", ["before_cross", "after_cross"])
def test_untuned_stam_is_the_plain_model_bitwise(position):
    model = demo()
    assert torch.equal(run(put(model, Form("stam", position, "self"))), run(model))


def test_untuned_temporal_attention_is_the_plain_model_bitwise():
    model = demo()
    assert torch.equal(run(put(model, Form("temporal", "after_feed_forward", "self"))), run(model))


@pytest.mark.parametrize("form", [STAM_FORM, Form("stam", "after_cross", "fine_coarse"), TUNE_A_VIDEO])
def test_tuned_modules_change_the_clip_and_leave_the_users_model_bit_identical(form):
    model = demo()
    before = run(model)
    changed = run(put(model, form, random_weights(model, form)))
    assert difference(changed, before) > 0.02
    assert torch.equal(run(model), before)
