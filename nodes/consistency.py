"""TemporalConsistency: how steady a clip is, as figures and as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..metrics.consistency import Agreement, Consistency, agreement, means, temporal_consistency
from .charts import COLOURS, INK, drawn, new_figure, render, style_axes
from .node import Node
from .reports import to_json

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


class TemporalConsistency(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalConsistency",
            display_name="Temporal Consistency",
            category="coherence/metrics",
            description="Measures how steady a clip is from frame to frame: SSIM, PSNR, flow-warped error, flicker "
            "and motion, as a chart and as JSON. With a reference, such as the clip before an edit, it compares the "
            "two.",
            search_aliases=["ssim", "psnr", "flicker", "warping error", "optical flow", "video quality"],
            inputs=[
                io.Image.Input("images", tooltip="The clip to measure: two frames or more, 11×11 pixels or more."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="A clip to compare with, of the same length and size: the source of an edit, or the same "
                    "seed without a technique. Leave it empty to measure only the clip.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "report", tooltip="The figures for each pair of neighbouring frames, and their means, as JSON."
                ),
                io.Image.Output("chart", tooltip="One panel per measure, frame by frame."),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, reference: Tensor | None = None) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        bar = ProgressBar(len(images) - 1 if reference is None else 3 * len(images) - 2)
        images = images[..., :3]
        figures: dict[str, Consistency | Agreement] = {}
        if reference is not None:
            reference = reference[..., :3]
            figures["against_reference"] = agreement(images, reference, device, lambda: bar.update(1))
            figures["reference"] = temporal_consistency(reference, device, lambda: bar.update(1))
        figures["clip"] = temporal_consistency(images, device, lambda: bar.update(1))
        figures = {name: figures[name] for name in LINES if name in figures}
        frames, height, width, _ = images.shape
        measured = {name: {"mean": means(each), **asdict(each)} for name, each in figures.items()}
        report = {"frames": frames, "height": height, "width": width, **measured}
        return io.NodeOutput(to_json(report, indent=2), drawn(_chart, figures, frames))


def _chart(figures: Mapping[str, Consistency | Agreement], frames: int) -> Tensor:
    """IMAGE: a panel for each of ``PANELS`` with a line for each of ``figures``; the legend in the sixth place."""
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
        lines = {name: getattr(each, measure) / unit for name, each in figures.items() if hasattr(each, measure)}
        for name, values in lines.items():
            axes.plot(range(frames - len(values), frames), values, markersize=4, clip_on=False, **LINES[name][1])
        known = torch.cat([*lines.values(), torch.tensor(span, dtype=torch.float64)])
        low, high = (limit.item() for limit in known[~known.isnan()].aminmax())
        axes.set_ylim(low, high if high == span[1] else 1.04 * high)
        axes.set_xlim(-0.5, frames - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    handles = [axes.plot([], [], **LINES[name][1], label=LINES[name][0])[0] for name in figures]
    corner = figure.add_axes((0.705, 0.09, 0.265, 0.25))
    corner.axis("off")
    corner.legend(handles=handles, loc="upper left", frameon=False, fontsize=10, labelcolor=INK)
    return render(figure)


NODES = [TemporalConsistency]
