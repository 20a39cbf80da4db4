"""Charts as pictures: matplotlib figures without pyplot's global state, in one look for all nodes.

What was computed is worth more than its picture, and it is drawn last: where it cannot be drawn, :func:`drawn` gives an
empty chart that says so. A node that does nothing but draw asks :func:`require_matplotlib` first.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee3"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""

DPI = 120
WIDTH, HEIGHT = 1440, 768
CURE = "Install what the pack's requirements.txt lists (pip install matplotlib) in ComfyUI's Python, and restart it."


class ChartError(RuntimeError):
    """Charts cannot be drawn here; the text says what to do."""


def require_matplotlib() -> None:
    """ChartError where matplotlib cannot be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ChartError(f"matplotlib, which draws the charts, cannot be used: {error}. {CURE}") from error


def drawn(draw: Callable[..., Tensor], *what: object) -> Tensor:
    """The IMAGE that ``draw(*what)`` gives, or an empty chart that says why there is none: matplotlib is missing or
    damaged, or has no fonts or folder of its own."""
    try:
        return draw(*what)
    except (ImportError, OSError) as error:
        reason = f"The chart could not be drawn; the other outputs are complete: {error}. {CURE}"
        logging.warning("%s", reason)
        picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
        ImageDraw.Draw(picture).multiline_text((28, 26), textwrap.fill(reason, 100), fill=INK)
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def new_figure(title: str, subtitle: str, width: int = WIDTH, height: int = HEIGHT) -> Figure:
    """A white figure of ``width`` × ``height`` pixels with a headline and one line in plain words below it.

    Axes belong below 0.84 of its height. Font sizes are points of 1/72 inch at 120 pixels an inch.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    left = 28 / width
    # A user's text is no formula, whatever dollars it holds.
    figure.text(left, 1 - 26 / height, title, fontsize=17, fontweight="bold", color=INK, va="top", parse_math=False)
    figure.text(left, 1 - 68 / height, subtitle, fontsize=11, color=MUTED, va="top", parse_math=False)
    return figure


def style_axes(axes: Axes, title: str, x_label: str, y_label: str, note: str = "") -> None:
    """Title at the left, a quiet note in a line below it, labels in ink, light horizontal rules, no box."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=23 if note else 8)
    axes.annotate(note, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=9, color=MUTED, va="bottom")
    axes.set_xlabel(x_label, fontsize=10, color=INK)
    axes.set_ylabel(y_label, fontsize=10, color=INK)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_heat_map(axes: Axes, values: Tensor, label: str, *, low: float, high: float, form: str = ".2f") -> None:
    """``values`` (rows, columns) as coloured cells, with a colour bar named ``label``.

    Up to 16 rows and columns the cells carry their values, in the format ``form``.
    """
    grid = values.detach().cpu().double().numpy()
    picture = axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    axes.grid(False)
    bar = axes.figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label(label, fontsize=10, color=INK)
    bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)
    bar.outline.set_visible(False)
    if max(grid.shape) > 16:
        return
    size = min(10.0, 92 / max(grid.shape))
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value < low + 0.6 * (high - low) else INK
        axes.text(column, row, format(value, form), ha="center", va="center", fontsize=size, color=colour)


def render(figure: Figure) -> Tensor:
    """``figure`` as an IMAGE: float32 (1, height, width, 3) in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]
