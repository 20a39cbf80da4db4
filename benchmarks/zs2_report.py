"""The tables, the chart and the contact sheet of :mod:`zs2_study`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from studies import COLOURS, PICTURES, Estimate, bootstrap, font, markdown, resamples, shown, slim
from torch import Tensor
from zs2_design import ATTENTIONS, BY_KL, BY_MU, CLAIMS, CROSS, KLS, MUS, NOISES, TABLES, Claim, Way

NAME = "zs2_study"
PROMPTS = {
    "The prompt says everything": ("shape", "colour", "background", "size", "position"),
    "The prompt leaves size and place open": ("shape", "colour", "background"),
}
"""What is read off the frames to see whether they obey."""
FULL, OPEN = PROMPTS
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "obeys change": ("change of it", "+.1%"),
    "form": ("form", ".3f"),
    "form change": ("change of it", "+.3f"),
    "grain": ("grain", ".2f"),
    "grain change": ("change of it", "+.2f"),
    "ssim": ("SSIM of neighbours", ".3f"),
    "psnr": ("PSNR of neighbours (dB)", ".1f"),
    "travel": ("travel (pixels)", ".1f"),
    "step": ("step (pixels a frame)", ".2f"),
}
ON_SHEET = [way for way in CROSS if way.attention in ("self", "momentum") or way.noise == "dependency"]
ON_SHEET += [BY_MU[0], *BY_MU[-2:], BY_KL[-1]]
FEWEST = 6
"""Clips below which the interval of a mean is not to be trusted."""
Records = list[dict[str, Any]]
Figures = dict[str, Tensor]
"""Name of a way → (scenes,) or (scenes, frames)."""


# Figures -------------------------------------------------------------------------------------------------------------


def change(values: Tensor) -> Tensor:
    """Mean of the last quarter of the frames less that of the first: (..., frames) → (...,)."""
    quarter = max(values.shape[-1] // 4, 1)
    return values[..., -quarter:].mean(-1) - values[..., :quarter].mean(-1)


def travel(centre: Tensor) -> Tensor:
    """How far a track gets from where it starts: (..., frames, 2) → (...,)."""
    return (centre - centre[..., :1, :]).norm(dim=-1).amax(-1)


def step(centre: Tensor) -> Tensor:
    """How far a track goes from a frame to the next, on average: (..., frames, 2) → (...,)."""
    return centre.diff(dim=-2).norm(dim=-1).mean(-1)


def raw(records: Records, name: str) -> Figures:
    """What was measured, (scenes, frames) for every way; NaN for scenes that it has not drawn."""
    scenes = sorted({record["scene"] for record in records})
    ways: dict[str, dict[int, Tensor]] = {}
    for record in records:
        values = torch.tensor(record[name], dtype=torch.float64)
        ways.setdefault(record["way"], {})[record["scene"]] = values
    nothing = torch.full_like(values, torch.nan)
    return {way: torch.stack([drawn.get(scene, nothing) for scene in scenes]) for way, drawn in ways.items()}


def figures(records: Records, measure: str) -> Figures:
    """One of ``MEASURES``: (scenes,) for every way."""
    name, _, of = measure.partition(" ")
    source = "centre" if name in ("travel", "step") else name
    read: Callable[[Tensor], Tensor] = {
        "travel": travel,
        "step": step,
    }.get(name, lambda values: values.mean(-1))
    return {way: (change if of else read)(values) for way, values in raw(records, source).items()}


def estimate(values: Tensor) -> Estimate:
    """Mean and interval over the scenes that were drawn, (scenes,)."""
    return bootstrap(values[~values.isnan()])


def gain(claim: Claim, records: Records) -> Tensor:
    """What a claim is about, clip by clip: (scenes,)."""
    values = figures(records, claim.measure)
    return values[claim.way.name] - (values[claim.other.name] if claim.other else 0)


def verdict(values: Tensor, sign: int) -> str:
    """What clips say of the claim that these values (clips,) have this sign."""
    found = estimate(values)
    if _clips(values) < FEWEST:
        return "too few clips"
    if not found.is_clear:
        return "not seen" if sign else "no difference seen"
    if not sign:
        return "differs"
    return "**holds**" if (found.value > 0) == (sign > 0) else "**the other way round**"


def _clips(values: Tensor) -> int:
    return int((~values.isnan()).sum())


def cost(taken: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, Estimate]]:
    """Processor time relative to self-attention's, round by round: clip → attention → its median."""
    plain = ATTENTIONS["self"]
    return {
        clip: {
            name: _median(torch.tensor(times) / torch.tensor(attentions[plain]))
            for name, times in attentions.items()
            if name != plain
        }
        for clip, attentions in taken.items()
    }


def _median(values: Tensor) -> Estimate:
    """With its percentile bootstrap interval: a round in which the machine did something else counts little."""
    medians = values[resamples(len(values))].quantile(0.5, dim=1)
    return Estimate(*(each.item() for each in (values.quantile(0.5), *medians.quantile(torch.tensor([0.025, 0.975])))))


# Markdown ------------------------------------------------------------------------------------------------------------


def table(records: Records, ways: list[Way]) -> str:
    """A row for every way that was drawn."""
    values = {name: figures(records, name) for name in MEASURES}
    rows = []
    for way in ways:
        if way.name in values["form"]:
            means = (shown(estimate(values[name][way.name]), form) for name, (_, form) in MEASURES.items())
            rows.append([way.name, str(_clips(values["form"][way.name])), *means])
    return markdown(["", "clips", *(title for title, _ in MEASURES.values())], rows)


def claims(kinds: Mapping[str, Records]) -> str:
    """A row for every claim whose ways were drawn: what all clips say, and the figure for either kind of prompt."""
    everything = [record for records in kinds.values() for record in records]
    drawn = set.intersection(*({record["way"] for record in records} for records in kinds.values()))
    rows = []
    for claim in CLAIMS:
        if not {way.name for way in (claim.way, claim.other) if way} <= drawn:
            continue
        name, _, of = claim.measure.partition(" ")
        figure = f"{of} of {name}" if of else {"ssim": "SSIM of neighbours"}.get(name, name)
        every, *each = (gain(claim, records) for records in (everything, *kinds.values()))
        form = "+" + MEASURES[claim.measure][1].lstrip("+")
        means = (shown(estimate(values), form) for values in (every, *each))
        rows.append([claim.text, verdict(every, claim.sign), figure, str(_clips(every)), *means])
    return markdown(["claim", "", "figure", "clips", "of all clips", *kinds], rows)


def costs(taken: Mapping[str, Mapping[str, list[float]]]) -> str:
    ratios = cost(taken)
    names = list(next(iter(ratios.values())))
    rows = [[name, *(shown(attentions[name], ".3f") for attentions in ratios.values())] for name in names]
    return markdown(["time of a step, of self-attention's", *ratios], rows)


# Pictures ------------------------------------------------------------------------------------------------------------


def chart(kinds: Mapping[str, Records]) -> Any:
    """Above, frame by frame, a column for each attention and a line for each noise; below, both sweeps."""
    from matplotlib.figure import Figure

    everything = [record for records in kinds.values() for record in records]
    figure = Figure(figsize=(13, 14), layout="constrained")
    grid = figure.subplots(5, 4)
    for row, name in zip(grid, ("obeys", "form", "grain"), strict=False):
        values = raw(everything, name)
        for axes, attention in zip(row, ATTENTIONS, strict=True):
            ways = {way.noise: way for way in CROSS if way.attention == attention}
            for colour, (noise, _) in zip(COLOURS, NOISES, strict=False):
                way = ways[noise]
                found = [estimate(column) for column in values[way.name].unbind(1)] if way.name in values else []
                if found:
                    _line(axes, range(1, len(found) + 1), found, colour, way.noise_name, is_band=True)
            axes.set_title(ways["iid"].attention_name, fontsize=9)
            axes.sharey(row[0])
            axes.set_xlabel("frame", fontsize=8)
        row[0].set_ylabel(MEASURES[name][0])
    grid[0][0].legend(frameon=False, fontsize=8, loc="lower left")
    for row, ways, swept in zip(grid[3:], (BY_MU, BY_KL), (("μ", MUS), ("λ", KLS)), strict=True):
        for axes, name in zip(row, ("form", "grain change", "ssim", "travel"), strict=True):
            for colour, (kind, records) in zip(COLOURS, kinds.items(), strict=False):
                values = figures(records, name)
                places = [place for place, way in enumerate(ways) if way.name in values]
                _line(axes, places, [estimate(values[ways[place].name]) for place in places], colour, kind)
            axes.set_xticks(range(len(ways)), [f"{value:g}" for value in swept[1]])
            axes.set_xlabel(swept[0], fontsize=8)
            axes.set_title({"grain change": "change of grain"}.get(name, MEASURES[name][0]), fontsize=9)
        fixed = ways[0].noise_name if swept[0] == "μ" else ways[0].attention_name
        row[0].set_ylabel(f"{swept[0]}, with {fixed}")
    grid[4][3].legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def _line(axes: Any, x: Sequence[int], found: list[Estimate], colour: str, label: str, is_band: bool = False) -> None:
    means, lows, highs = zip(*found, strict=True)
    if is_band:
        axes.plot(x, means, color=colour, label=label, linewidth=1.5)
        axes.fill_between(x, lows, highs, color=colour, alpha=0.12, linewidth=0)
        return
    bars = [np.subtract(means, lows), np.subtract(highs, means)]
    axes.errorbar(x, means, bars, fmt="o-", color=colour, label=label, linewidth=1.3, capsize=2, markersize=4)


def contact_sheet(clips: Mapping[str, Mapping[str, Tensor]], every: int = 2) -> Image.Image:
    """For each prompt a block: a row for every way, of every second of its frames (F, 128, 128, 3)."""
    side, gap, band, label = 72, 3, 26, 275
    ways = next(iter(clips.values()))
    columns = len(next(iter(ways.values()))[::every])
    block = band + len(ways) * (side + gap) + 8
    sheet = Image.new("RGB", (label + columns * (side + gap), len(clips) * block), "white")
    pen, small, large = ImageDraw.Draw(sheet), font(13), font(15)
    for number, (prompt, drawn) in enumerate(clips.items()):
        top = number * block
        pen.text((gap, top + 4), f"“{prompt}”", fill="#1f2933", font=large)
        for row, (way, frames) in enumerate(drawn.items()):
            y = top + band + row * (side + gap)
            pen.text((gap, y + side // 2 - 8), way, fill="#1f2933", font=small)
            for column, frame in enumerate(frames[::every]):
                picture = Image.fromarray((frame * 255).round().byte().numpy())
                picture = picture.resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(picture, (label + column * (side + gap), y))
    return sheet


def write(records: Records, taken: dict[str, Any], sheet: Image.Image, folder: Path, is_published: bool) -> str:
    """Write tables, chart and sheet to ``folder`` and to the documentation; returns the tables."""
    kinds = {kind: [record for record in records if record["kind"] == kind] for kind in PROMPTS}
    frames = len(records[0]["form"])
    parts = [f"**The paper's claims** (clips of {frames} frames)\n\n{claims(kinds)}"]
    parts += [f"**Cost** (medians of processor time, one thread)\n\n{costs(taken)}"] if taken else []
    for title, ways in TABLES.items():
        for kind, of in kinds.items():
            parts.append(f"**{title}. {kind}**\n\n{table(of, ways)}")
    text = "\n\n".join(parts) + "\n"
    for place, dpi in [(folder, 110)] + [(PICTURES, 80)] * is_published:
        (place / f"{NAME}.md").write_text(text, "utf-8")
        chart(kinds).savefig(place / f"{NAME}.png", dpi=dpi)
        slim(place / f"{NAME}.png")
        sheet.save(place / f"{NAME}.jpg", quality=86, optimize=True)
    return text
