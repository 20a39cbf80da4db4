"""The comparison plot: every figure of the runs over every input that was varied. Needs matplotlib."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .manifest import DONE, write_whole
from .sheet import INK, MUTED, RULE
from .variations import one_line, short_names, varied

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]
Axis = tuple[str, list[Any]]
"""A varied input and its values."""
NAME = "comparison.png"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind readers too."""
MARKS = ("o", "s", "^", "D", "v", "P")
_MOST_FIGURES, _MOST_INPUTS = 24, 6
_MOST_TICKS = 6
_LOG_FROM = 50.0  # largest over smallest value
_LETTERS = 24  # of a label


def draw_plot(records: Sequence[Json], folder: Path) -> Path | None:
    """Write the comparison plot; None if there is nothing to compare: fewer than two runs, or none with figures."""
    from matplotlib import rc_context

    # Texts of users are no formulas, whatever dollars they hold.
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        return _draw_plot(records, folder)


def _draw_plot(records: Sequence[Json], folder: Path) -> Path | None:
    from matplotlib.figure import Figure

    done = [record for record in records if record["status"] == DONE]
    inputs = list(varied([record["values"] for record in done]).items())[:_MOST_INPUTS] or [
        ("run", [record["run"] for record in done])
    ]
    names = _figure_names(done)[:_MOST_FIGURES]
    path = folder / NAME
    if len(done) < 2 or not names:
        path.unlink(missing_ok=True)  # an earlier table's
        return None
    figure: Any = Figure(
        (5.2 * len(inputs) + 0.4, 2.9 * len(names) + 0.5), dpi=110, facecolor="white", layout="constrained"
    )
    grid: Any = figure.subplots(len(names), len(inputs), squeeze=False)
    short = short_names([column for column, _ in inputs])
    for row, name in enumerate(names):
        for place, (column, values) in enumerate(inputs):
            others = [other for other in inputs if other[0] != column]
            _panel(grid[row][place], done, name, column, values, others)
            grid[row][place].set_xlabel(short[column] if row == len(names) - 1 else "", fontsize=10, color=INK)
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        figure.savefig(drawn := BytesIO(), format="png")
    write_whole(path, drawn.getvalue())
    return path


def _figure_names(records: Sequence[Json]) -> list[str]:
    """Figures that differ between runs, in the order in which they come."""
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in record["figures"].items():
            found.setdefault(name, []).append(value)
    return [name for name, values in found.items() if len(set(values)) > 1]


def _panel(
    axes: "Axes",
    records: Sequence[Json],
    name: str,
    column: str,
    values: list[Any],
    others: list[Axis],
) -> None:
    """``name`` over ``column``: a point for each run, a line through the means for each value of another input."""
    is_numeric = all(_is_number(value) for value in values)
    at = {repr(value): value if is_numeric else place for place, value in enumerate(values)}
    # Lines for the input with the fewest values, so that they can be told apart.
    apart = min(
        (other for other in others if len(other[1]) <= len(COLOURS)), key=lambda other: len(other[1]), default=None
    )
    for place, group in enumerate(apart[1] if apart else [None]):
        points: dict[float, list[float]] = {}
        for record in records:
            if name in record["figures"] and (apart is None or _same(record["values"].get(apart[0]), group)):
                x = at[repr(record["run"] if column == "run" else record["values"].get(column))]
                points.setdefault(x, []).append(record["figures"][name])
        behind = len(apart[1]) - 1 - place if apart else 0  # wider, to be seen where others lie on it
        look: Json = {"color": COLOURS[place], "marker": MARKS[place], "markersize": 5 + 2 * behind}
        look |= {"linewidth": 1.5 + 1.5 * behind}
        label = f"{apart[0].rpartition('.')[2]} = {_short(group)}" if apart else None
        means = {x: sum(ys) / len(ys) for x, ys in sorted(points.items())}
        axes.plot(list(means), list(means.values()), linestyle="-" if is_numeric else ":", label=label, **look)
        if any(len(ys) > 1 for ys in points.values()):
            pairs = [(x, y) for x, ys in points.items() for y in ys]
            axes.plot(*zip(*pairs, strict=True), linestyle="", alpha=0.35, **look)
    if is_numeric and min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        axes.set_xscale("log")
    if not is_numeric or len(values) <= _MOST_TICKS:
        axes.set_xticks(list(at.values()), [_short(value) for value in values], minor=False)
        axes.minorticks_off()
        if not is_numeric:
            axes.margins(x=0.12)
            axes.tick_params(axis="x", rotation=30 if len(values) > 3 else 0)
    axes.set_title(name, loc="left", fontsize=11, color=INK)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", useOffset=False)
    for side in axes.spines.values():
        side.set_visible(False)
    if apart:
        axes.legend(fontsize=9, labelcolor=INK, framealpha=0.85, edgecolor="none")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _short(value: Any) -> str:
    text = f"{value:g}" if _is_number(value) else "(the workflow’s)" if value is None else one_line(value)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
