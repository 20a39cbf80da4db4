"""What a study shows: tables, charts and contact sheets, in one style."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from claims import FAILS, HOLDS, NO_GAIN, UNDECIDED, Claim, Cost, Estimate, estimate, number, shown
from PIL import Image, ImageDraw
from torch import Tensor

PACK = Path(__file__).resolve().parent.parent
PICTURES = PACK / "web" / "docs" / "pictures"
VERDICT_COLOURS = {HOLDS: "#00795a", FAILS: "#b8490a", NO_GAIN: "#3d5a80", UNDECIDED: "#6b7480", "": "#6b7480"}
Measures = Mapping[str, tuple[str, str]]
"""Key → title, and how its figures are written."""
Values = Callable[[str, str], Tensor]
"""Way and measure → figures (units, ...)."""


def _charts() -> Any:
    """nodes/charts.py by itself: its package needs ComfyUI."""
    spec = importlib.util.spec_from_file_location("charts", PACK / "nodes" / "charts.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


charts = _charts()
COLOURS, INK, MUTED = charts.COLOURS, charts.INK, charts.MUTED


# Tables, in Markdown -------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bold(found: Estimate, form: str) -> str:
    """A difference; bold where its interval leaves out 0."""
    text = shown(found, "+" + form.lstrip("+"))
    return f"**{text}**" if found.is_clear else text


def means(ways: Iterable[str], measures: Measures, values: Values, corner: str = "", gains: bool = False) -> str:
    """A row for every way, a column for every measure; ``gains`` are differences."""

    def cell(way: str, name: str) -> str:
        show = bold if gains else shown
        return show(estimate(values(way, name)), measures[name][1])

    header = [corner, *(title for title, _ in measures.values())]
    return table(header, [[way, *(cell(way, name) for name in measures)] for way in ways])


def claims_table(claims: Iterable[Claim], corrected: Mapping[Claim, float] | None = None) -> str:
    """With a verdict each; what is none of a paper's claims stands in brackets. ``corrected``: p for their number."""
    rows = []
    for each in claims:
        verdict = each.verdict if each.verdict in (UNDECIDED, "") else f"**{each.verdict}**"
        row = [verdict, each.text if each.is_papers else f"({each.text})", each.where, each.figure, each.expected]
        row += [each.worth_shown, each.measured]
        if corrected is not None:
            row.append(p_shown(corrected[each]) if each in corrected else "")
        rows.append([cell.replace("|", "\\|") for cell in [*row, each.basis]])
    header = ["", "claim", "where", "figure", "claimed", "worth having", "measured, with its 95% interval"]
    return table([*header, *["p by Holm"] * (corrected is not None), "on"], rows)


def p_shown(p: float) -> str:
    return "< 0.001" if p < 0.001 else number(p, ".3f" if p < 0.1 else ".2f")


def costs_table(costs: Iterable[Cost]) -> str:
    rows = ([each.what, each.measured, each.theory, each.peer] for each in costs)
    return table(["what", "measured", "theory or target", "peers"], rows)


# Charts --------------------------------------------------------------------------------------------------------------


def panels(title: str, subtitle: str, rows: int, columns: int, size: tuple[int, int], **more: Any) -> tuple[Any, Any]:
    """A figure, and its axes (rows, columns) of about ``size`` pixels each."""
    width, height = columns * size[0], rows * size[1] + 96
    figure = charts.new_figure(title, fill(subtitle, width // 8), width, height)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 96 / height))
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def style(axes: Any, title: str = "", x_label: str = "", y_label: str = "", fold: int = 30) -> None:
    """Title and labels, folded to fit a panel."""
    charts.style_axes(axes, fill(title, fold), x_label, fill(y_label, 34))


def legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False, fontsize=10)


def bars_of(found: Sequence[Estimate]) -> np.ndarray:
    """How far intervals reach below and above their figures, as matplotlib wants it."""
    return np.array([[max(e.value - e.low, 0.0), max(e.high - e.value, 0.0)] for e in found]).T


def line(axes: Any, x: Sequence[float], found: Sequence[Estimate], colour: int, label: str, band: bool = False) -> None:
    """Figures and their intervals over ``x``, as error bars or as a band; NaN leaves a gap."""
    y, look = [each.value for each in found], {"color": COLOURS[colour % len(COLOURS)], "label": label}
    if band:
        axes.plot(x, y, linewidth=1.5, **look)
        axes.fill_between(
            x, [e.low for e in found], [e.high for e in found], alpha=0.12, linewidth=0, color=look["color"]
        )
    elif found:
        axes.errorbar(x, y, bars_of(found), fmt="o-", linewidth=1.3, capsize=2, markersize=4, **look)


def rows_chart(
    title: str, subtitle: str, ways: Sequence[str], measures: Measures, series: Mapping[str, Values], zero: bool = False
) -> Any:
    """A panel for each measure, a row for each way, a point with its interval for each of the series."""
    figure, ((*grid,),) = panels(title, subtitle, 1, len(measures), (230, 130 + 34 * len(ways)), sharey=True)
    for axes, (name, (heading, _)) in zip(grid, measures.items(), strict=True):
        style(axes, heading, fold=18)
        axes.locator_params(axis="x", nbins=3)
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1)
        for place, (label, values) in enumerate(series.items()):
            for row, way in enumerate(ways):
                found, y = estimate(values(way, name)), row + 0.2 * (place - (len(series) - 1) / 2)
                colour = COLOURS[place]
                axes.plot((found.low, found.high), (y, y), color=colour, alpha=0.5, linewidth=2)
                axes.plot(found.value, y, "o", markersize=4, color=colour, label=label if row == 0 else None)
    grid[0].set_yticks(range(len(ways)), ways)
    grid[0].invert_yaxis()
    if len(series) > 1:
        legend(figure, grid[0])
    return figure


def claims_chart(claims: Sequence[Claim]) -> Any:
    """A line for each figure, in a scale of its own about what it is compared with; shaded is the side on which the
    claim would have it."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(10, 0.6 + 0.27 * len(claims)), layout="constrained")
    axes: Any = chart.subplots()
    for y, claim in enumerate(claims):
        left, right, low, value, high = on_a_line(claim)
        axes.barh(y, right - left, 0.86, left, color="#e3efe9")
        colour = VERDICT_COLOURS[claim.verdict]
        axes.plot((low, high), (y, y), color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(value, y, "o", color=colour, markersize=5)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    said = (claim.text if len(claim.text) < 88 else f"{claim.text[:86]}…" for claim in claims)
    named = [text if claim.is_papers else f"({text})" for text, claim in zip(said, claims, strict=True)]
    axes.set_yticks(range(len(claims)), named, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(-1, 1), xticks=[], frame_on=False)
    axes.margins(y=0.01)
    axes.tick_params(length=0)
    return chart


def on_a_line(claim: Claim) -> tuple[float, float, float, float, float]:
    """Between −1 and 1, 0 being what the figure is compared with: both ends of the side on which the claim would have
    it, then the interval's low end, the figure, and the high end."""
    found = claim.difference
    reach = float(np.nanmax(np.abs([*found, 1.6 * claim.tolerance]))) * 1.12 or 1.0
    near = claim.tolerance / reach
    left, right = {1: (0.0, 1.0), -1: (-1.0, 0.0), 0: (-near, near)}[claim.sign] if claim.is_papers else (0.0, 0.0)
    return left, right, found.low / reach, found.value / reach, found.high / reach


# Pictures ------------------------------------------------------------------------------------------------------------


def font(size: int) -> Any:
    """matplotlib's DejaVu Sans, which is the same everywhere; Pillow's own has no ² or λ."""
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def image_of(pixels: Tensor) -> Image.Image:
    """Of (H, W, 3) in [0, 1]."""
    return Image.fromarray((pixels * 255).round().byte().cpu().numpy())


def sheet(
    blocks: Sequence[tuple[str, Mapping[str, Iterable[Tensor]]]], columns: Sequence[str] = (), side: int = 80
) -> Image.Image:
    """A contact sheet: for each block what it says, and a row of pictures (H, W, 3), ``side`` pixels wide and all of
    one shape, for every name in it; above all, what the ``columns`` are."""
    small, large, gap = font(13), font(15), 3
    rows = [(block, name, [*pictures]) for block, (_, named) in enumerate(blocks) for name, pictures in named.items()]
    high, wide = rows[0][2][0].shape[:2]
    tall = round(side * high / wide)
    label = int(max(small.getlength(name) for _, name, _ in rows)) + 12
    heights = [9 + 18 * len(said.splitlines()) for said, _ in blocks]
    top = 22 * bool(columns)
    size = (label + max(len(each) for *_, each in rows) * (side + gap), top + sum(heights) + len(rows) * (tall + gap))
    made = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(made)
    for column, name in enumerate(columns):
        pen.text((label + column * (side + gap), 4), name, fill=INK, font=small)
    before = -1
    for block, name, pictures in rows:
        if block != before:
            pen.text((gap, top + 3), blocks[block][0], fill=INK, font=large)
            before, top = block, top + heights[block]
        pen.text((gap, top + tall // 2 - 8), name, fill=INK, font=small)
        for column, picture in enumerate(pictures):
            shrunk = image_of(picture).resize((side, tall), Image.Resampling.LANCZOS)
            made.paste(shrunk, (label + column * (side + gap), top))
        top += tall + gap
    return made


def slim(path: Path, colours: int = 64) -> None:
    """Give a PNG a palette, which takes a fourth of the bytes: the package for the registry has to stay small. Lines
    and points do with 16 colours, colour maps do not."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def as_webp(path: Path) -> None:
    """Put a PNG's pixels into a .webp in its place, three quarters of the bytes."""
    with Image.open(path) as picture:
        picture.convert("RGB").save(path.with_suffix(".webp"), lossless=True, quality=100, method=6)
    path.unlink()


def publish(
    name: str,
    folder: Path,
    is_published: bool,
    text: str,
    chart: Any = None,
    pictures: Image.Image | None = None,
    brief: str = "",
) -> str:
    """Write ``name``.md, .png (the chart) and .jpg (the pictures) to ``folder`` and, published, to the documentation,
    which may get a ``brief`` text, and has the chart as .webp; returns that text."""
    for place, words in [(folder, text)] + [(PICTURES, brief or text)] * is_published:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.md").write_text(words.rstrip() + "\n", "utf-8")
        if chart:
            chart.savefig(place / f"{name}.png", dpi=100)
            slim(place / f"{name}.png", colours=16)
            if place is PICTURES:
                as_webp(place / f"{name}.png")
        if pictures:
            pictures.save(place / f"{name}.jpg", quality=88, optimize=True)
    return brief or text
