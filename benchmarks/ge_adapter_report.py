"""Tables and chart of :mod:`ge_adapter_study`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from studies import Estimate, bootstrap, markdown, pack, shown, slim

KERNELS, STEPS_OF_INVERSION = (0, 3, 5, 9), (4, 8, 16)
"""Kernel 0 is plain DDIM inversion."""
INFERENCE = (0.5, 0.8, 0.9)
"""From which share of the noise levels on the LoRA is in the model; 0.9 is the paper's."""
PARTS = {"sampled": "Clips sampled with ZS²", "edited": "Rendered clips, edited"}
MEASURES = {
    "fidelity": ("obeys the prompt", ".1%"),
    "consistency": ("SSIM of neighbouring frames", ".3f"),
    "iou": ("shape stays in place (IoU)", ".3f"),
    "background": ("background kept (PSNR, dB)", ".1f"),
}
Figures = dict[str, Estimate]


class Summary(dict[str, dict[str, Figures]]):
    """Part → way → measure → mean over the clips and its interval; ``gains``: each way's differences from none."""

    gains: dict[str, dict[str, Figures]]
    clips: int


def summarise(records: list[dict[str, Any]]) -> Summary:
    summary = Summary()
    summary.gains, summary.clips = {}, len(records)
    for part in (*PARTS, "inverted"):
        ways = records[0][part]
        taken = {way: {name: _taken(records, part, way, name) for name in ways[way]} for way in ways}
        summary[part] = {way: {name: bootstrap(x) for name, x in each.items()} for way, each in taken.items()}
        if part in PARTS:
            summary.gains[part] = {
                way: {name: bootstrap(x - taken["without"][name]) for name, x in each.items()}
                for way, each in taken.items()
                if way != "without"
            }
    return summary


def _taken(records: list[dict[str, Any]], part: str, way: str, name: str) -> torch.Tensor:
    return torch.tensor([record[part][way][name] for record in records])


def verdict(summary: Summary) -> str:
    """What the paper's setting does to consistency and fidelity, in words."""
    lines = []
    for part, title in PARTS.items():
        gain = summary.gains[part]["adapter, on 0.9 to 1"]
        words = []
        for name in ("consistency", "fidelity"):
            said = "no clear change" if not gain[name].is_clear else "more" if gain[name].value > 0 else "less"
            words.append(f"{MEASURES[name][0]}: {said}, {shown(gain[name], '+.4f')}")
        lines.append(f"- {title}: {'; '.join(words)}")
    return "\n".join(lines)


def tables(summary: Summary, steps: int) -> str:
    about = (
        f"Adapters of {steps} steps, {summary.clips} clips, means with 95% intervals. Differences from no adapter, "
        f"clip by clip, of the paper's setting:\n\n{verdict(summary)}\n"
    )
    texts = [about]
    for part, title in PARTS.items():
        names = [name for name in MEASURES if name in summary[part]["without"]]
        rows = [
            [way, *(shown(figures[name], MEASURES[name][1]) for name in names)]
            for way, figures in summary[part].items()
        ]
        texts.append(f"**{title}**\n\n{markdown(['adapter', *(MEASURES[name][0] for name in names)], rows)}\n")
    rows = []
    for kernel in KERNELS:
        cells = (summary["inverted"][f"{kernel} {count}"]["psnr"] for count in STEPS_OF_INVERSION)
        rows.append([str(kernel or "none"), *(shown(each, ".1f") for each in cells)])
    header = ["kernel", *(f"{count} steps" for count in STEPS_OF_INVERSION)]
    texts.append(f"**Inverted and drawn again: PSNR (dB), by kernel of the filter**\n\n{markdown(header, rows)}\n")
    return "\n".join(texts)


def chart(summary: Summary, steps: int) -> Image.Image:
    """For both parts the differences in consistency and fidelity, a row for each way, with intervals."""
    charts = pack("nodes.charts")
    figure = charts.new_figure(
        "What a GE-Adapter changes",
        f"Differences from no adapter, clip by clip: {summary.clips} clips, {steps} steps, 95% intervals. Right is "
        "better.",
    )
    panels = [(part, name) for part in PARTS for name in ("consistency", "fidelity")]
    for place, (part, name) in enumerate(panels):
        axes = figure.add_axes((0.2 + 0.2 * place, 0.12, 0.17, 0.66))
        charts.style_axes(axes, f"{part}: {'SSIM' if name == 'consistency' else 'obeys'}", "", "")
        ways = list(summary.gains[part])
        axes.set_yticks(range(len(ways)), ways if place == 0 else [""] * len(ways))
        axes.invert_yaxis()
        axes.axvline(0, color=charts.MUTED, linewidth=1)
        for row, way in enumerate(ways):
            estimate = summary.gains[part][way][name]
            axes.plot((estimate.low, estimate.high), (row, row), color=charts.COLOURS[0], alpha=0.5, linewidth=2)
            axes.plot(estimate.value, row, "o", color=charts.COLOURS[0])
    pixels = charts.render(figure)[0]
    return Image.fromarray((pixels * 255).round().byte().numpy().astype(np.uint8))


def write(folder: Path, summary: Summary, steps: int) -> None:
    """``ge_adapter_study.png`` and ``.md`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    chart(summary, steps).save(folder / "ge_adapter_study.png")
    slim(folder / "ge_adapter_study.png")
    (folder / "ge_adapter_study.md").write_text(tables(summary, steps), "utf-8")
