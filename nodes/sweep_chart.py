"""A sweep as a picture: damage beside entropy, layer by layer and one against the other (IE-Adapt's Figs. 2, 16 to
21)."""

from __future__ import annotations

import math

from torch import Tensor

from ..attention.registry import AttentionRegistry
from ..metrics.ranks import RankCorrelation
from .charts import INK, MUTED, new_figure, render, style_axes
from .register_chart import (
    BAND,
    FEWEST,
    GAP,
    HEAD,
    KIND_COLOURS,
    LAYER_WIDTH,
    LEFT,
    LETTER,
    PANEL,
    RIGHT,
    name_layers,
    one_place_a_layer,
)

TITLES = {
    "change": "Change of picture",
    "consistency": "Consistency lost",
    "sharpness": "Sharpness lost",
    "clip_similarity": "CLIP similarity lost",
}
UNITS = {
    "change": "1 − SSIM",
    "consistency": "SSIM of neighbours lost",
    "sharpness": "Share of sharpness lost",
    "clip_similarity": "1 − cosine",
}
SIDE = 330
"""Pixels of the panel of one against the other."""


def draw_sweep(registry: AttentionRegistry, perturbation: str, score: str, found: RankCorrelation) -> Tensor:
    """IMAGE (1, height, width, 3) of the layers that have a damage: bars of damage, bars of entropy, and each layer as
    a point of both; the selected ones are marked."""
    layers = [layer for layer in registry.layers if layer.damage is not None]
    width = LEFT + RIGHT + LAYER_WIDTH * max(len(layers), FEWEST)
    names = round(50 + LETTER * max(len(layer.name) for layer in layers))
    below = HEAD + 2 * (GAP + PANEL) + names + GAP
    height = below + SIDE + 70
    summary = (
        f"{registry.model}, {len(layers)} layers, one map at a time replaced by the {perturbation} map. "
        f"Selected: {sum(layer.selected for layer in layers)}."
    )
    figure = new_figure("What is each attention layer for?", summary, width, height)
    span = (LEFT / width, 1 - (LEFT + RIGHT) / width)
    damages = [layer.damage or 0.0 for layer in layers]
    entropies = [100 * layer.figures.entropy if layer.figures else math.nan for layer in layers]
    colours = [KIND_COLOURS[layer.kind] for layer in layers]

    damage, entropy = (
        figure.add_axes((span[0], 1 - (HEAD + GAP + row * (GAP + PANEL) + PANEL) / height, span[1], PANEL / height))
        for row in range(2)
    )
    note = f"{UNITS[score]}, compared with the unperturbed clip. Larger is worse."
    style_axes(damage, TITLES[score], "", UNITS[score], note=note)
    style_axes(
        entropy,
        "Entropy of the attention map",
        "Layer, in the order they run",
        "Entropy (% of its maximum)",
        note="Mean of the perturbed steps. 100%: attends to everything equally. 0%: attends to one token only.",
    )
    for axes, values in ((damage, damages), (entropy, entropies)):
        axes.bar(range(len(layers)), values, width=0.66, color=colours)
        one_place_a_layer(axes, layers)
        for place, layer in enumerate(layers):
            if layer.selected:
                axes.axvspan(place - 0.5, place + 0.5, color=BAND, alpha=0.25, linewidth=0, zorder=0)
    damage.axhline(0, color=MUTED, linewidth=1)
    entropy.set_ylim(0, 105)
    name_layers(entropy, layers)

    both = figure.add_axes((span[0], 1 - (below + SIDE) / height, 560 / width, SIDE / height))
    style_axes(both, "One against the other", "Entropy (% of its maximum)", UNITS[score], note=_told(found))
    sizes = [64 if layer.selected else 26 for layer in layers]
    both.scatter(entropies, damages, s=sizes, color=colours, zorder=3)
    for kind, colour in KIND_COLOURS.items():
        if any(layer.kind == kind for layer in layers):
            both.scatter([], [], color=colour, label=kind)
    both.scatter([], [], s=220, color=BAND, alpha=0.5, label="selected")
    both.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=10, labelcolor=INK)
    for layer, x, y in zip(layers, entropies, damages, strict=True):
        if layer.selected:
            both.scatter(x, y, s=220, color=BAND, alpha=0.5, zorder=2)
            both.annotate(layer.name, (x, y), (5, 4), textcoords="offset points", fontsize=8, color=INK)
    return render(figure)


def _told(found: RankCorrelation) -> str:
    if math.isnan(found.rho):
        return "No rank correlation: one of the two is equal in all layers."
    rho = round(found.rho, 2) + 0.0  # no minus before 0.00
    if math.isnan(found.low):
        return f"Rank correlation ρ = {rho:+.2f}; too few layers for an interval."
    return f"Rank correlation ρ = {rho:+.2f} (95%: {found.low:+.2f} to {found.high:+.2f}), p = {found.p:.3f}."
