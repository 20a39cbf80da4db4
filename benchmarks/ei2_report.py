"""Tables, chart and contact sheet of :mod:`ei2_study`."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from ei2_bench import CHANGES
from PIL import Image, ImageDraw
from studies import PICTURES, Estimate, bootstrap, font, markdown, pack, shown, slim
from torch import Tensor

NAME = "ei2_study"
IDEAL = "the ideal edit"
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "change": ("has what was to change", ".1%"),
    "track": ("centre off the ideal (pixels)", ".1f"),
    "iou": ("IoU with the ideal", ".3f"),
    "ssim": ("SSIM to the ideal", ".3f"),
    "warped": ("warped error of neighbours (10⁻³)", ".2f"),
    "steady": ("neighbours show the same", ".1%"),
}
PAIRS = (
    ("Tune-A-Video", "untuned"),
    ("STAM", "untuned"),
    ("STAM", "untuned, fine-coarse"),
    ("STAM", "Tune-A-Video"),
    ("STAM, cross_map", "STAM"),
)
"""Who is compared with whom, clip by clip."""
SHOWN = 4
"""Clips on the contact sheet: one of each motion."""


def values(records: list[dict[str, Any]], way: str, measure: str, changes: tuple[str, ...] = CHANGES) -> Tensor:
    """(clips, changes)."""
    return torch.tensor([[record["ways"][way][change][measure] for change in changes] for record in records])


def means_table(records: list[dict[str, Any]], changes: tuple[str, ...] = CHANGES) -> str:
    rows = [
        [way, *(shown(bootstrap(values(records, way, name, changes)), form) for name, (_, form) in MEASURES.items())]
        for way in records[0]["ways"]
    ]
    return markdown(["", *(title for title, _ in MEASURES.values())], rows)


def differences_table(records: list[dict[str, Any]]) -> str:
    """Bold where the interval leaves out 0."""

    def cell(way: str, other: str, name: str) -> str:
        gain = bootstrap(values(records, way, name) - values(records, other, name))
        text = shown(gain, "+" + MEASURES[name][1])
        return f"**{text}**" if gain.is_clear else text

    rows = [[f"{way} less {other}", *(cell(way, other, name) for name in MEASURES)] for way, other in PAIRS]
    return markdown(["clip by clip", *(title for title, _ in MEASURES.values())], rows)


def chart(records: list[dict[str, Any]]) -> Any:
    """A panel for each measure, a row for each way, a point with its interval for each kind of edit."""
    charts = pack("nodes.charts")
    figure = charts.new_figure(
        "One clip tuned, then edited",
        f"Means of {len(records)} clips with 95% intervals. Off the ideal and warped error: lower is better; "
        "all else: higher.",
    )
    ways = list(records[0]["ways"])
    for place, (name, (title, _)) in enumerate(MEASURES.items()):
        axes = figure.add_axes((0.135 + 0.124 * place, 0.12, 0.1, 0.64))
        charts.style_axes(axes, "", "", "", "")
        axes.set_title(fill(title, 16), loc="left", fontsize=9, color=charts.INK)
        axes.set_yticks(range(len(ways)), ways if place == 0 else [""] * len(ways))
        axes.invert_yaxis()
        axes.locator_params(axis="x", nbins=3)
        for number, change in enumerate(CHANGES):
            for row, way in enumerate(ways):
                found: Estimate = bootstrap(values(records, way, name, (change,)))
                y, colour = row - 0.2 + 0.2 * number, charts.COLOURS[number]
                axes.plot((found.low, found.high), (y, y), color=colour, alpha=0.5, linewidth=2)
                axes.plot(found.value, y, "o", markersize=4, color=colour, label=f"new {change}" if row == 0 else None)
        if place == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=3, frameon=False, fontsize=10)
    return figure


def contact_sheet(clips: list[dict[str, Any]]) -> Image.Image:
    """For each clip a block: its prompts, and below them the frames of the source and of every way."""
    side, gap, band, label = 80, 3, 46, 170
    ways = list(clips[0]["frames"])
    columns = len(clips[0]["frames"]["source"])
    block = band + len(ways) * (side + gap) + 10
    sheet = Image.new("RGB", (label + columns * (side + gap), len(clips) * block), "white")
    pen, small, large = ImageDraw.Draw(sheet), font(13), font(15)
    for number, clip in enumerate(clips):
        top = number * block
        pen.text((gap, top + 4), "“{}”\n→ “{}”".format(*clip["prompts"]), fill="#1f2933", font=large)
        for row, way in enumerate(ways):
            y = top + band + row * (side + gap)
            pen.text((gap, y + side // 2 - 8), way, fill="#1f2933", font=small)
            for column, frame in enumerate(clip["frames"][way]):
                pixels = Image.fromarray((frame * 255).round().byte().numpy().astype(np.uint8))
                sheet.paste(pixels.resize((side, side), Image.Resampling.LANCZOS), (label + column * (side + gap), y))
    return sheet


def write(records: list[dict[str, Any]], clips: list[dict[str, Any]], folder: Path, is_published: bool) -> str:
    """Tables, chart and sheet to ``folder`` and, published, to the documentation; returns the tables."""
    parts = [f"**{len(records)} clips, three edits each**", means_table(records), differences_table(records)]
    for change in CHANGES:
        parts += [f"**New {change}**", means_table(records, (change,))]
    text = "\n\n".join(parts)
    for place in [folder] + [PICTURES] * is_published:
        (place / f"{NAME}.md").write_text(text + "\n", "utf-8")
        chart(records).savefig(place / f"{NAME}.png")
        slim(place / f"{NAME}.png")
        contact_sheet(clips).save(place / f"{NAME}.jpg", quality=88, optimize=True)
    return text
