"""Inputs of the nodes around the register: what is measured, from where, and which layers are chosen."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention.registry import CHOICES, ORDERS

Registry = io.Custom("ATTENTION_REGISTRY")


def start_inputs() -> list[io.Input]:
    """What a measuring run starts from, as the sampler gets it."""
    return [
        io.Model.Input("model", tooltip="The model to look into. It is neither changed nor left with anything."),
        io.Conditioning.Input(
            "conditioning",
            tooltip="The prompt to measure with, usually the positive one. It is used alone: no negative, no cfg.",
        ),
        io.Noise.Input("noise", tooltip="The noise that goes into the sampler, so that its very steps are measured."),
        io.Sigmas.Input(
            "sigmas", tooltip="The noise levels that go into the sampler, from a scheduler node. Step 0 is the first."
        ),
        io.Latent.Input(
            "latent_image",
            tooltip="The latent that goes into the sampler: it gives frames and size. Bigger ones cost more.",
        ),
    ]


def ranking_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "kind",
            options=list(CHOICES),
            default="all",
            tooltip="Which layers may be selected. spatial: within a picture. temporal: across frames. joint: both at "
            "once (video transformers). all: any of these; never cross-attention.",
        ),
        io.Combo.Input(
            "select",
            options=list(ORDERS),
            default="highest",
            tooltip="highest: the most even maps, for perturbation guidance. lowest: the most structured maps, for "
            "editing.",
        ),
        io.Int.Input(
            "count",
            default=1,
            min=0,
            max=4096,
            tooltip="How many layers to select, 1 to as many as there are. 1 is the paper's choice for guidance. "
            "0: use percent instead.",
        ),
        io.Float.Input(
            "percent",
            default=50.0,
            min=0.0,
            max=100.0,
            step=1.0,
            tooltip="Share of the layers to select where count is 0, 0 to 100, rounded down, at least one. 50 is the "
            "paper's choice for editing; more keeps more of the source.",
        ),
    ]


def registry_input() -> io.Input:
    return Registry.Input("registry", tooltip="Layers and their figures: from EntropyRegister or a saved file.")


def perturbed_layers_input() -> io.Input:
    """The registry of a node that acts on the layers it selects."""
    return Registry.Input(
        "registry",
        tooltip="Which layers: those it selects. From EntropyRegister (measured), SelectAttentionLayers (named) or "
        "LoadAttentionRegistry; ReselectAttentionLayers chooses others by the same figures.",
    )
