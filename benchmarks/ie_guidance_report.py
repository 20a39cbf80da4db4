"""The tables, the chart and the contact sheet of :mod:`ie_guidance_study`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from studies import COLOURS, PICTURES, Estimate, bootstrap, font, markdown, shown, slim
from torch import Tensor

NAME = "ie_guidance_study"
PLAIN = "plain CFG"
PAIRS = ("A-I", "U-A", "U-I", "strategy 3")
LONE = ("strategy 1", "strategy 4")
GUIDANCES = (*PAIRS, *LONE)
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "form": ("form", ".3f"),
    "sharpness": ("sharpness", ".3f"),
    "grain": ("grain", ".2f"),
    "ssim": ("SSIM of neighbouring frames", ".3f"),
    "moves": ("moves as the prompt says", ".1%"),
}
Summary = dict[str, dict[str, tuple[Estimate, Estimate]]]
"""Way → measure → its mean, and its difference from plain CFG."""


def way_name(guidance: str, scale: float) -> str:
    return guidance if guidance in LONE else f"{guidance} λ={scale:g}"


def summarise(records: list[dict[str, Any]]) -> Summary:
    """Of the records of one setting."""
    ways = records[0]["ways"]
    values = {
        way: {name: torch.tensor([record["ways"][way][name] for record in records]) for name in ways[PLAIN]}
        for way in ways
    }
    return {
        way: {name: (bootstrap(each), bootstrap(each - values[PLAIN][name])) for name, each in measures.items()}
        for way, measures in values.items()
    }


def table(summary: Summary, ways: list[str]) -> str:
    """Means of plain CFG, and of the ways their difference from it; bold where its interval leaves out 0."""
    measures = summary[PLAIN]

    def cell(way: str, name: str) -> str:
        mean, gain = summary[way][name]
        form = MEASURES[name][1]
        if way == PLAIN:
            return shown(mean, form)
        return f"**{shown(gain, '+' + form)}**" if gain.is_clear else shown(gain, "+" + form)

    rows = [[way, *(cell(way, name) for name in measures)] for way in ways]
    return markdown(["", *(MEASURES[name][0] for name in measures)], rows)


def short(summary: Iterable[str]) -> list[str]:
    """The ways of a short table: every guidance at λ = 2."""
    return [way for way in summary if "λ" not in way or way.endswith("λ=2")]


def heading(title: str, records: list[dict[str, Any]]) -> str:
    layers = Counter(", ".join(record["layers"]) for record in records)
    pictures = len(records[0]["ways"][PLAIN]["obeys"])
    named = ", ".join(f"`{name}` for {count}" for name, count in layers.most_common())
    return f"**{title}** ({len(records)} prompts, {pictures} pictures each; layer: {named})"


def chart(summaries: dict[str, Summary], titles: dict[str, str]) -> Any:
    """Differences from plain CFG against λ, a row a setting."""
    from matplotlib.figure import Figure

    measures = {name: each for name, each in MEASURES.items() if any(name in s[PLAIN] for s in summaries.values())}
    figure = Figure(figsize=(2.6 * len(measures), 2.7 * len(summaries)), layout="constrained")
    grid = figure.subplots(len(summaries), len(measures), squeeze=False)
    for row, (setting, summary) in zip(grid, summaries.items(), strict=True):
        for axes, (name, (title, _)) in zip(row, measures.items(), strict=True):
            if name not in summary[PLAIN]:
                axes.set_axis_off()
                continue
            axes.axhline(0, color="#1f2933", linewidth=0.8)
            for number, guidance in enumerate(GUIDANCES):
                points = [(s, summary[way][name][1]) for s in (1, 2, 4) if (way := way_name(guidance, s)) in summary]
                points = points[:1] if guidance in LONE else points
                if not points:
                    continue
                x = [(0.5 if guidance in LONE else scale) * (1 + 0.05 * (number - 2.5)) for scale, _ in points]
                y = [gain.value for _, gain in points]
                bars = [[g.value - g.low for _, g in points], [g.high - g.value for _, g in points]]
                style = {"color": COLOURS[number], "label": guidance, "capsize": 2, "markersize": 4}
                axes.errorbar(x, y, bars, fmt="o-", linewidth=1.2, **style)
            axes.set_xscale("log")
            axes.set_xticks([0.5, 1, 2, 4], ["no λ", "1", "2", "4"])
            axes.minorticks_off()
            axes.set_xlim(0.4, 5)
            axes.set_title(title, fontsize=9)
        row[0].set_ylabel(fill(f"{titles[setting]}, less plain CFG", 28))
    handles, labels = grid[0][0].get_legend_handles_labels()
    grid[0][-1].legend(handles, labels, loc="center left", frameon=False)
    figure.supxlabel("λ")
    return figure


def contact_sheet(pictures: dict[str, dict[str, Tensor]]) -> Image.Image:
    """One line a prompt: its picture (128, 128, 3) in every way."""
    side, gap, band = 128, 4, 24
    columns = next(iter(pictures.values()))
    sheet = Image.new("RGB", (len(columns) * (side + gap), band + len(pictures) * (side + band + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, way in enumerate(columns):
        pen.text((column * (side + gap) + 2, 4), way, fill="#1f2933", font=font(13))
    for line, (prompt, ways) in enumerate(pictures.items()):
        top = band + line * (side + band + gap)
        pen.text((2, top + 4), f"“{prompt}”", fill="#52606d", font=font(13))
        for column, picture in enumerate(ways.values()):
            pixels = (picture * 255).round().byte().numpy().astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (column * (side + gap), top + band))
    return sheet


def write(
    study: str,
    records: list[dict[str, Any]],
    titles: dict[str, str],
    sheet: Image.Image,
    folder: Path,
    is_published: bool,
) -> str:
    """Write tables, chart and sheet to ``folder``, the short ones to the documentation; returns the short table."""
    of = {setting: [r for r in records if r["setting"] == setting] for setting in titles}
    summaries = {setting: summarise(each) for setting, each in of.items()}
    headings = {setting: heading(titles[setting], each) for setting, each in of.items()}
    whole = "\n\n".join(f"{headings[s]}\n\n{table(summary, list(summary))}" for s, summary in summaries.items())
    brief = "\n\n".join(f"{headings[s]}\n\n{table(summary, short(summary))}" for s, summary in summaries.items())
    (folder / f"{study}.md").write_text(whole + "\n", "utf-8")
    for place, dpi in [(folder, 110)] + [(PICTURES, 80)] * is_published:
        chart(summaries, titles).savefig(place / f"{study}.png", dpi=dpi)
        slim(place / f"{study}.png")
        sheet.save(place / f"{study}.jpg", quality=88, optimize=True)
    if is_published:
        (PICTURES / f"{study}.md").write_text(brief + "\n", "utf-8")
    return brief
