"""The register as a picture: IE-Adapt's Fig. 4 for any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..attention.registry import SELECTABLE, AttentionRegistry, Layer, Ranking
from .charts import COLOURS, INK, MUTED, new_figure, render, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_COLOURS = {"spatial": COLOURS[0], "temporal": COLOURS[1], "joint": COLOURS[2]}
BAND, BOUND, HALF = COLOURS[4], "#8592a0", "#c1121f"
HEAD, PANEL, GAP, LEFT, RIGHT = 84, 220, 84, 100, 40  # pixels
LAYER_WIDTH, FEWEST = 30, 42  # pixels for a layer; a chart is as wide as one of so many layers, at least
ROW = 14  # pixels of a row of a heat map
LETTER = 9.5  # pixels of a letter of a layer's name


def draw_registry(registry: AttentionRegistry) -> Tensor:
    """IMAGE (1, height, width, 3) of a measured registry, over its layers of self-attention in order.

    Three panels: energy with its two bounds, energy proportion, entropy; the selected layers are marked. Where layers
    are ranked anew at each step, a map of the entropy at each measured step; where heads are chosen, one of each
    head's. Cross-attention and the prompt's own cannot be selected and are left out.
    """
    layers = [layer for layer in registry.layers if layer.kind in SELECTABLE]
    drawing: list[tuple[int, Callable[[Axes, list[Layer]], None]]] = [
        (PANEL, _draw_energy),
        (PANEL, _draw_proportion),
        (PANEL, _draw_entropy),
    ]
    for rows, draw in _heat_maps(registry, layers):
        drawing.append((max(PANEL // 2, ROW * rows), draw))
    width = LEFT + RIGHT + LAYER_WIDTH * max(len(layers), FEWEST)
    names = round(50 + LETTER * max(len(layer.name) for layer in layers))
    height = HEAD + sum(GAP + panel for panel, _ in drawing) + names
    figure = new_figure("How does each attention layer attend?", _summary(registry, layers), width, height)

    top = HEAD
    for panel, draw in drawing:
        top += GAP + panel
        place = (LEFT / width, 1 - top / height, 1 - (LEFT + RIGHT) / width, panel / height)
        axes = figure.add_axes(place)
        draw(axes, layers)
        one_place_a_layer(axes, layers)
        if axes.get_legend_handles_labels()[0]:
            _mark_selected(axes, layers)
            axes.legend(
                loc="lower right",
                bbox_to_anchor=(1, 1 + 19 / panel),
                ncols=6,
                frameon=False,
                fontsize=9,
                labelcolor=INK,
            )
    axes.set_xlabel("Layer, in the order they run", fontsize=10, color=INK)
    name_layers(axes, layers)
    return render(figure)


def one_place_a_layer(axes: Axes, layers: list[Layer]) -> None:
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_xticks(range(len(layers)), [])


def name_layers(axes: Axes, layers: list[Layer]) -> None:
    """Below the lowest panel; the selected ones bold."""
    axes.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90)
    for label, layer in zip(axes.get_xticklabels(), layers, strict=True):
        label.set(color=INK, fontweight="bold" if layer.selected else "normal", parse_math=False)


def _heat_maps(
    registry: AttentionRegistry, layers: list[Layer]
) -> Iterator[tuple[int, Callable[[Axes, list[Layer]], None]]]:
    """The number of rows of each map that belongs to the chart, and what draws it."""
    ranking, measured = registry.selection, registry.measurement
    if not isinstance(ranking, Ranking):
        return
    if ranking.live and measured is not None:
        yield len(measured.steps), partial(_draw_steps, measured.steps)
    if ranking.per_head:
        yield max(layer.heads for layer in layers), _draw_heads


def _draw_steps(steps: tuple[int, ...], axes: Axes, layers: list[Layer]) -> None:
    values = [layer.figures.by_step if layer.figures else () for layer in layers]
    style_axes(
        axes,
        "Entropy at each step (% of its maximum)",
        "",
        "Step",
        note="At each step of a run, layers are ranked by the entropies of the step before.",
    )
    _draw_heat(axes, values, len(steps))
    shown = range(0, len(steps), math.ceil(len(steps) / 12))
    axes.set_yticks(shown, [str(steps[place]) for place in shown])


def _draw_heads(axes: Axes, layers: list[Layer]) -> None:
    values = [layer.figures.heads if layer.figures else () for layer in layers]
    rows = max(layer.heads for layer in layers)
    style_axes(axes, "Entropy of each head (% of its maximum)", "", "Head", note="The selected heads have a frame.")
    _draw_heat(axes, values, rows)
    axes.set_yticks(range(0, rows, math.ceil(rows / 12)))
    for place, layer in enumerate(layers):
        heads = range(layer.heads) if layer.selected_heads is None else layer.selected_heads
        for head in heads if layer.selected else ():
            axes.plot(*_frame(place, head), color=HALF, linewidth=1.6, clip_on=False)


def _draw_heat(axes: Axes, values: list[tuple[float, ...]], rows: int) -> None:
    """``values`` of each layer downwards, in [0, 1]; white where there is none."""
    heat = np.full((rows, len(values)), np.nan)
    for place, column in enumerate(values):
        heat[: len(column), place] = column
    axes.grid(visible=False)
    drawn = axes.imshow(100 * heat, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    bar = axes.inset_axes((1.004, 0, 0.006, 1))
    axes.figure.colorbar(drawn, cax=bar)
    bar.tick_params(labelsize=7, length=0, pad=1, colors=MUTED)


def _frame(x: float, y: float) -> tuple[list[float], list[float]]:
    return [x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5], [y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5]


def _summary(registry: AttentionRegistry, layers: list[Layer]) -> str:
    selection, selected = registry.selection, str(len(registry.selected))
    how = f"{selection.select} {selection.by}" if isinstance(selection, Ranking) else repr(selection)
    steps = registry.measurement.steps if registry.measurement else (0,)
    when = f"step {steps[0]}" if len(steps) == 1 else f"mean of {len(steps)} steps from {steps[0]} to {steps[-1]}"
    if isinstance(selection, Ranking) and selection.per_head:
        heads = sum(len(layer.selected_heads or ()) for layer in layers)
        how, selected = f"{how} of heads", f"{heads} heads in {selected} layers"
    if isinstance(selection, Ranking) and selection.live:
        how = f"{how}, chosen again at each step"
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
        "",
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
