"""The register as a picture: IE-Adapt's Fig. 4 for any model."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..attention.registry import SELECTABLE, AttentionRegistry, Layer, Ranking
from .charts import COLOURS, INK, MUTED, new_figure, render, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_COLOURS = {"spatial": COLOURS[0], "temporal": COLOURS[1], "joint": COLOURS[2]}
BAND, BOUND, HALF = COLOURS[4], "#8592a0", "#c1121f"
HEAD, PANEL, GAP, LEFT, RIGHT = 84, 220, 84, 100, 40  # pixels
LAYER_WIDTH, FEWEST = 30, 42  # pixels for a layer; a chart is as wide as one of so many layers, at least
LETTER = 9.5  # pixels of a letter of a layer's name


def draw_registry(registry: AttentionRegistry) -> Tensor:
    """IMAGE (1, height, width, 3) of a measured registry, over its layers of self-attention in order.

    Three panels: energy with its two bounds, energy proportion, entropy; the selected layers are marked. Cross-
    attention and the prompt's own cannot be selected and are left out.
    """
    layers = [layer for layer in registry.layers if layer.kind in SELECTABLE]
    width = LEFT + RIGHT + LAYER_WIDTH * max(len(layers), FEWEST)
    height = round(HEAD + 3 * (GAP + PANEL) + 50 + LETTER * max(len(layer.name) for layer in layers))
    figure = new_figure("How does each attention layer attend?", _summary(registry, layers), width, height)

    span = (LEFT / width, 1 - (LEFT + RIGHT) / width)
    tops = [HEAD + GAP + row * (GAP + PANEL) for row in range(3)]
    panels = [figure.add_axes((span[0], 1 - (top + PANEL) / height, span[1], PANEL / height)) for top in tops]
    for axes, draw in zip(panels, (_draw_energy, _draw_proportion, _draw_entropy), strict=True):
        draw(axes, layers)
        _mark_selected(axes, layers)
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.set_xticks(range(len(layers)), [])
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1 + 19 / PANEL), ncols=6, frameon=False, fontsize=9, labelcolor=INK
        )
    panels[-1].set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90)
    for label, layer in zip(panels[-1].get_xticklabels(), layers, strict=True):
        label.set(color=INK, fontweight="bold" if layer.selected else "normal", parse_math=False)
    return render(figure)


def _summary(registry: AttentionRegistry, layers: list[Layer]) -> str:
    selection, selected = registry.selection, len(registry.selected)
    how = f"{selection.select} {selection.by}" if isinstance(selection, Ranking) else repr(selection)
    steps = registry.measurement.steps if registry.measurement else (0,)
    when = f"step {steps[0]}" if len(steps) == 1 else f"mean of {len(steps)} steps from {steps[0]} to {steps[-1]}"
    return f"{registry.model}, {len(layers)} layers of self-attention, {when}. Selected: {selected}, by {how}."


def _draw_energy(axes: Axes, layers: list[Layer]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    energies = [layer.figures.energy for layer in layers if layer.figures]
    low, high = [e.uniform for e in energies], [e.identity for e in energies]
    style_axes(
        axes,
        "Energy of the output",
        "",
        "Energy, mean ‖row‖²",
        note="How large the layer's output is. Upper bound: tokens are not mixed. Lower bound: all are mixed equally.",
    )
    axes.vlines(range(len(layers)), low, high, color=BOUND, linewidth=1, alpha=0.5)
    bounds: dict[str, Any] = {"color": BOUND, "linestyle": "", "markersize": 6}
    axes.plot(high, marker=7, label="E(V): upper bound", **bounds)
    axes.plot(low, marker=6, label="E(UV): lower bound", **bounds)
    _points(axes, layers, [e.attention for e in energies], prefix="E(AV): ")
    if min(low) > 0:
        axes.set_yscale("log")
        # Within two decades powers of ten would be too few ticks to read values by.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(high) < 100 * min(low) else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_proportion(axes: Axes, layers: list[Layer]) -> None:
    proportions = [100 * layer.figures.energy.proportion for layer in layers if layer.figures]
    style_axes(
        axes,
        "Energy proportion",
        "",
        "Proportion (%)",
        note="Where E(AV) lies between its bounds. 0%: as smooth as equal weights. 100%: no smoothing.",
    )
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.vlines(range(len(layers)), 0, proportions, color=BOUND, linewidth=1, alpha=0.5)
    _points(axes, layers, proportions)


def _draw_entropy(axes: Axes, layers: list[Layer]) -> None:
    from matplotlib.patheffects import withStroke

    entropies = [100 * layer.figures.entropy for layer in layers if layer.figures]
    style_axes(
        axes,
        "Entropy of the attention map",
        "Layer, in the order they run",
        "Entropy (% of its maximum)",
        note="100%: attends to everything equally. 0%: attends to one token only.",
    )
    for kind, colour in KIND_COLOURS.items():
        places = [i for i, layer in enumerate(layers) if layer.kind == kind]
        if places:
            heights = [entropies[i] for i in places]
            alphas = [1.0 if layers[i].selected else 0.35 for i in places]
            for place, bar, alpha in zip(places, heights, alphas, strict=True):
                axes.bar(place, bar, width=0.66, color=colour, alpha=alpha)
    for place, value in enumerate(entropies):
        text = axes.text(place, value + 1.5, f"{value:.1f}", ha="center", va="bottom", fontsize=7, color=INK)
        text.set(zorder=4, path_effects=[withStroke(linewidth=2, foreground="white")])
    axes.axhline(50, color=HALF, linewidth=1.2, label="50%")
    axes.axhline(
        median(entropies), color=HALF, linewidth=1.2, linestyle=":", label="median: half of the layers lie below"
    )
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 25))


def _points(axes: Axes, layers: list[Layer], values: list[float], prefix: str = "") -> None:
    """A dot for each layer in the colour of its kind, larger for the selected ones."""
    for kind, colour in KIND_COLOURS.items():
        places = [i for i, layer in enumerate(layers) if layer.kind == kind]
        if places:
            sizes = [64 if layers[i].selected else 26 for i in places]
            heights = [values[i] for i in places]
            axes.scatter(places, heights, s=sizes, color=colour, zorder=3, label=f"{prefix}{kind}")


def _mark_selected(axes: Axes, layers: list[Layer]) -> None:
    for place, layer in enumerate(layers):
        if layer.selected:
            axes.axvspan(place - 0.5, place + 0.5, color=BAND, alpha=0.2, linewidth=0, zorder=0)
    axes.bar(0, 0, color=BAND, alpha=0.35, label="selected")
