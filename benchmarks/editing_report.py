"""Tables, chart and contact sheet of :mod:`editing_study`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from studies import Estimate, bootstrap, font, markdown, pack, shown, slim
from torch import Tensor

KINDS = {"rendered": "Rendered clips, inverted", "generated": "Clips drawn by the model"}
MEASURES = {
    "fidelity": ("obeys the target prompt", ".1%"),
    "iou": ("shape stays in place (IoU)", ".3f"),
    "background": ("background kept (PSNR, dB)", ".1f"),
    "consistency": ("SSIM of neighbouring frames", ".3f"),
    "moves": ("moves as the prompts say", ".1%"),
}
SHOWN = 1
"""Clips of each kind on the contact sheet."""
ON_SHEET = ("source", "nothing", "lowest 25%", "lowest 50%", "lowest 100%", "key_value, lowest 50%", "cross_map")
Summary = dict[str, dict[str, dict[str, Estimate]]]
"""Kind → way → measure → mean over the clips and its interval."""


def summarise(records: list[dict[str, Any]]) -> Summary:
    summary: Summary = {}
    for kind in KINDS:
        of_kind = [record["ways"] for record in records if record["kind"] == kind]
        if of_kind:
            summary[kind] = {
                way: {name: bootstrap(torch.tensor([ways[way][name] for ways in of_kind])) for name in measured}
                for way, measured in of_kind[0].items()
            }
    return summary


def table(ways: dict[str, dict[str, Estimate]]) -> str:
    """Means with 95% intervals, a row for each way."""
    rows = [[way, *(shown(each, MEASURES[name][1]) for name, each in figures.items())] for way, figures in ways.items()]
    measured = next(iter(ways.values()))
    return markdown(["replaced", *(MEASURES[name][0] for name in measured)], rows)


def chart(summary: Summary, clips: int) -> Image.Image:
    """A panel for each measure, a row for each way, a point with its interval for each kind of clips."""
    charts = pack("nodes.charts")
    figure = charts.new_figure(
        "What an edit obeys, and what it keeps",
        f"Means of {clips} clips of each kind with 95% intervals. Right is better; a clip that moves has less SSIM.",
    )
    ways = next(iter(summary.values()))
    measures = next(iter(ways.values()))
    width = 0.852 / len(measures)
    for place, name in enumerate(measures):
        title, form = MEASURES[name]
        axes = figure.add_axes((0.155 + width * place, 0.12, width - 0.023, 0.68))
        charts.style_axes(axes, title, "", "")
        axes.set_yticks(range(len(ways)), list(ways) if place == 0 else [""] * len(ways))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(
            lambda value, _, form=form: format(value, form.replace(".3f", ".2f").replace(".1", ".0"))
        )
        for number, kind in enumerate(summary):
            label = KINDS[kind]
            for row, way in enumerate(ways):
                estimate, y = summary[kind][way][name], row - 0.12 + 0.24 * number
                axes.plot((estimate.low, estimate.high), (y, y), color=charts.COLOURS[number], alpha=0.5, linewidth=2)
                axes.plot(estimate.value, y, "o", color=charts.COLOURS[number], label=label if row == 0 else None)
        if place == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=2, frameon=False, fontsize=10)
    return _picture(charts.render(figure)[0])


def contact_sheet(pictures: list[dict[str, Any]]) -> Image.Image:
    """For each clip a block: its prompts, and below them the frames of the source and of every way on the sheet."""
    side, gap, band, label = 96, 4, 46, 190
    columns = len(pictures[0]["frames"]["source"])
    rows = [way for way in ON_SHEET if way in pictures[0]["frames"]]
    block = band + len(rows) * (side + gap) + 10
    sheet = Image.new("RGB", (label + columns * (side + gap), len(pictures) * block), "white")
    pen, small, large = ImageDraw.Draw(sheet), font(14), font(15)
    for number, clip in enumerate(pictures):
        top = number * block
        pen.text((gap, top + 4), "“{}”\n→ “{}”".format(*clip["prompts"]), fill="#1f2933", font=large)
        for row, way in enumerate(rows):
            y = top + band + row * (side + gap)
            pen.text((gap, y + side // 2 - 8), way, fill="#1f2933", font=small)
            for column, frame in enumerate(clip["frames"][way]):
                sheet.paste(
                    _picture(frame).resize((side, side), Image.Resampling.LANCZOS), (label + column * (side + gap), y)
                )
    return sheet


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels * 255).round().byte().numpy().astype(np.uint8))


def write(
    folder: Path, study: str, summary: Summary, pictures: list[dict[str, Any]], records: list[dict[str, Any]]
) -> None:
    """``study``.png, .jpg (the sheet) and .md (the tables) in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = len(records) // len(summary)
    chart(summary, clips).save(folder / f"{study}.png")
    slim(folder / f"{study}.png")
    contact_sheet(pictures).save(folder / f"{study}.jpg", quality=88, optimize=True)
    tables = (f"**{KINDS[kind]}** ({clips} clips)\n\n{table(ways)}\n" for kind, ways in summary.items())
    (folder / f"{study}.md").write_text("\n".join(tables), "utf-8")
