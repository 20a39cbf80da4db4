"""The figures of TemporalConsistency as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..metrics.consistency import Agreement, Consistency, means
from ..metrics.look import PER, Look, drifts
from .charts import COLOURS, INK, MUTED, new_figure, render, style_axes

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("this clip, frame to frame", {"color": COLOURS[0], "marker": "o"}),
    "reference": ("the reference, frame to frame", {"color": COLOURS[1], "marker": "s"}),
    "against_reference": ("this clip against the reference", {"color": COLOURS[2], "marker": "^", "linestyle": "--"}),
}
PANELS = {  # name, note, the least that the axis spans, unit
    "ssim": ("SSIM", "1: the same picture twice. Lower: it changes.", (0.9, 1.0), 1.0),
    "psnr": ("PSNR (dB)", "68: the same picture twice. Lower: it changes.", (10.0, 70.0), 1.0),
    "warped_error": ("Warped error (×10⁻³)", "Squared change that no motion explains. 0: none.", (0.0, 0.1), 1e-3),
    "flicker": ("Flicker", "Mean change of a pixel, 0 to 1, motion included.", (0.0, 0.01), 1.0),
    "motion": ("Motion (pixels per frame)", "Speed of the fastest 5% of the picture.", (0.0, 1.0), 1.0),
}


def draw_consistency(
    figures: Mapping[str, Consistency | Agreement],
    frames: int,
    looks: Mapping[str, Look],
    at: list[int],
    content: Mapping[str, Mapping[str, Tensor]],
) -> Tensor:
    """IMAGE: a panel for each of ``PANELS`` with a line for each of ``figures``; in the sixth place the legend, and the
    drift in words; what the frames show in a line at the foot."""
    from matplotlib.ticker import MaxNLocator

    mean = means(figures["clip"])
    figure = new_figure(
        "How steady is the clip?",
        f"{frames} frames. On average: SSIM {mean['ssim']:.4f}, PSNR {mean['psnr']:.1f} dB, "
        f"warped error {1e3 * mean['warped_error']:.3f}·10⁻³, flicker {mean['flicker']:.4f}, "
        f"motion {mean['motion']:.2f} pixels.",
    )
    for place, (measure, (title, note, span, unit)) in enumerate(PANELS.items()):
        row, column = divmod(place, 3)
        axes = figure.add_axes((0.055 + 0.325 * column, 0.53 - 0.44 * row, 0.265, 0.25))
        style_axes(axes, title, "Frame (counted from 0)" if row else "", "", note=note)
        for seam in at:
            axes.axvline(seam, color=MUTED, linewidth=0.8, linestyle=":")
        lines = {name: getattr(each, measure) / unit for name, each in figures.items() if hasattr(each, measure)}
        for name, values in lines.items():
            axes.plot(range(frames - len(values), frames), values, markersize=4, clip_on=False, **LINES[name][1])
        known = torch.cat([*lines.values(), torch.tensor(span, dtype=torch.float64)])
        low, high = (limit.item() for limit in known[~known.isnan()].aminmax())
        axes.set_ylim(low, high if high == span[1] else 1.04 * high)
        axes.set_xlim(-0.5, frames - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    handles = [axes.plot([], [], **LINES[name][1], label=LINES[name][0])[0] for name in figures]
    corner = figure.add_axes((0.705, 0.04, 0.265, 0.30))
    corner.axis("off")
    corner.legend(handles=handles, loc="upper left", frameon=False, fontsize=10, labelcolor=INK)
    figure.text(0.055, 0.012, _content_line(content), fontsize=9, color=INK, parse_math=False)
    told = [f"Drift of the clip in {PER} frames, and its 95% interval", *_drift_lines(looks["clip"])]
    corner.text(0.02, 0.0, "\n".join(told), fontsize=9, color=INK, linespacing=1.5, va="bottom", parse_math=False)
    return render(figure)


def _content_line(content: Mapping[str, Mapping[str, Tensor]]) -> str:
    shown = [
        f"{name.replace('_', ' ')} {values.nanmean():.4f}"
        for entry in ("clip", "against_reference")
        for name, values in content.get(entry, {}).items()
    ]
    return f"On average, by the image encoder: {', '.join(shown)}" if shown else ""


def _drift_lines(seen: Look) -> list[str]:
    """A line for each measure of the look."""
    lines = []
    for name, (value, low, high) in drifts(seen).items():
        between = "too few frames" if math.isnan(low) else f"{low:+.3g} to {high:+.3g}"
        lines.append(f"{name}: " + ("not measured" if math.isnan(value) else f"{value:+.3g} ({between})"))
    return lines
