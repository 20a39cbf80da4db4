"""TemporalConsistency: how steady a clip is, as figures and as a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..metrics.consistency import Agreement, Consistency, agreement, means, temporal_consistency
from ..metrics.embeddings import consistency_with_first, directional_similarity, frame_consistency, similarity
from ..metrics.look import PER, Look, drifts, look, seam_jumps
from .charts import COLOURS, INK, MUTED, drawn, new_figure, render, style_axes
from .checks import InputError
from .encoders import TEXTS, embed_images, embed_text
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
            description="Measures how steady a clip is from frame to frame: SSIM, PSNR, flow-warped error, flicker and "
            "motion, and how fast brightness, contrast, saturation and sharpness drift, as a chart and as JSON. With a "
            "reference, such as the clip before an edit, it compares the two. With an image encoder it also tells "
            "whether the frames show the same and what the prompt asks for.",
            search_aliases=[
                "ssim",
                "psnr",
                "flicker",
                "warping error",
                "optical flow",
                "video quality",
                "drift",
                "seam",
                "clip score",
                "clip similarity",
                "vbench",
                "subject consistency",
                "directional similarity",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The clip to measure: two frames or more, 11×11 pixels or more."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="A clip to compare with, of the same length and size: the source of an edit, or the same "
                    "seed without a technique. Leave it empty to measure only the clip.",
                ),
                io.String.Input(
                    "seams",
                    default="",
                    optional=True,
                    placeholder="8, 16",
                    tooltip="For a clip made in several runs: the first frame of each run after the first, counted "
                    "from 0, such as 8, 16 for runs of 8 frames. The report then lists the jumps at these seams beside "
                    "the other steps. Leave it empty if the clip has none.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="An image encoder, from Load CLIP Vision. The report then tells how alike the frames' "
                    "content is: with CLIP the papers' frame consistency and VBench's background consistency, with "
                    "DINOv2 VBench's subject consistency. Leave it empty to measure pixels only.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that belongs to clip_vision, such as CLIP-L for ViT-L. Needed for prompt "
                    "and reference_prompt only.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="What the clip should show; the first 75 tokens count. With clip_vision and clip, the "
                    "report tells how well each frame fits it (CLIP similarity). Leave it empty for none.",
                ),
                io.String.Input(
                    "reference_prompt",
                    default="",
                    optional=True,
                    tooltip="What the reference shows. With prompt and reference, the report tells whether the "
                    "pictures changed as the texts did (directional similarity). Leave it empty for none.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "report",
                    tooltip="The figures for each pair of neighbouring frames, their means, and the drift per 100 "
                    "frames, as JSON.",
                ),
                io.Image.Output("chart", tooltip="One panel per measure, frame by frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        reference: Tensor | None = None,
        seams: str = "",
        clip_vision: Any = None,
        clip: Any = None,
        prompt: str = "",
        reference_prompt: str = "",
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        frames, height, width, _ = images.shape
        at = _seams_of(seams, frames)
        texts = _texts_of(clip_vision, clip, reference, prompt, reference_prompt)
        encoded = 0 if clip_vision is None else frames * (1 if reference is None else 2)
        bar = ProgressBar(encoded + (2 * frames - 1 if reference is None else 5 * frames - 2))

        def progress() -> None:
            bar.update(1)

        images = images[..., :3]
        figures: dict[str, Consistency | Agreement] = {}
        looks: dict[str, Look] = {}
        if reference is not None:
            reference = reference[..., :3]
            figures["against_reference"] = agreement(images, reference, device, progress)
            figures["reference"] = temporal_consistency(reference, device, progress)
            looks["reference"] = look(reference, device, progress)
        figures["clip"] = temporal_consistency(images, device, progress)
        looks["clip"] = look(images, device, progress)
        figures = {name: figures[name] for name in LINES if name in figures}
        content = {}
        if clip_vision is not None:
            content = _content(clip_vision, clip, {"clip": images, "reference": reference}, texts, progress)
        measured = {name: {"mean": means(each), **asdict(each)} for name, each in figures.items()}
        for name, shown in content.items():
            measured[name]["content"] = {"mean": {key: each.nanmean() for key, each in shown.items()}, **shown}
        for name, seen in looks.items():
            drift = {key: {"per_100_frames": each.value, "interval": each[1:]} for key, each in drifts(seen).items()}
            measured[name] |= {"look": asdict(seen), "drift": drift}
            if at:
                measured[name]["seams"] = seam_jumps(_steps(figures[name], seen), at)
        report = {"frames": frames, "height": height, "width": width, **measured}
        return io.NodeOutput(to_json(report, indent=2), drawn(_chart, figures, frames, looks, at, content))


def _texts_of(
    clip_vision: Any, clip: Any, reference: Tensor | None, prompt: str, reference_prompt: str
) -> dict[str, str]:
    """The prompt of each clip that has one. InputError where one could not be used."""
    texts = {"clip": prompt.strip(), "reference": reference_prompt.strip()}
    texts = {name: text for name, text in texts.items() if text}
    if not texts:
        return {}
    name = "prompt" if "clip" in texts else "reference_prompt"
    missing = [each for each, given in (("clip_vision", clip_vision), ("clip", clip)) if given is None]
    if missing:
        raise InputError(
            f"{name} is given without {' and '.join(missing)}, expected both encoders. Connect Load CLIP Vision and "
            f"the Load CLIP that belongs to it, or leave {name} empty."
        )
    if "reference" in texts and reference is None:
        raise InputError(
            "reference_prompt is given without a reference, expected the clip that it tells of. Connect reference, or "
            "leave reference_prompt empty."
        )
    return texts


def _content(
    clip_vision: Any,
    clip: Any,
    clips: Mapping[str, Tensor | None],
    texts: Mapping[str, str],
    progress: Callable[[], object],
) -> dict[str, dict[str, Tensor]]:
    """What the frames show, for the entries of the report: cosines of vectors by name."""
    seen = {name: embed_images(clip_vision, each, progress) for name, each in clips.items() if each is not None}
    channels = seen["clip"].shape[-1]
    told = {name: embed_text(clip, text, clip_vision, channels) for name, text in texts.items()}
    whole = "background_consistency" if clip_vision.model_type == TEXTS else "subject_consistency"
    shown = {}
    for name, frames in seen.items():
        shown[name] = {"frame_consistency": frame_consistency(frames), whole: consistency_with_first(frames)}
        if name in told:
            shown[name]["text_similarity"] = similarity(frames, told[name])
    if "reference" in seen:
        shown["against_reference"] = {"image_similarity": similarity(seen["clip"], seen["reference"])}
        if len(told) == 2:
            directional = directional_similarity(seen["clip"], seen["reference"], told["clip"], told["reference"])
            shown["against_reference"]["directional_similarity"] = directional
    return shown


def _seams_of(text: str, frames: int) -> list[int]:
    """The frame numbers in ``seams``. InputError for what is none of the clip's."""
    found = set()
    for piece in filter(None, (piece.strip() for piece in text.replace("\n", ",").split(","))):
        if not (piece.isascii() and piece.isdigit() and len(piece) < 10 and 0 < int(piece) < frames):
            raise InputError(
                f"seams holds {piece[:20]!r}, expected frame numbers from 1 to {frames - 1}, separated by commas: the "
                "first frame of each further run, counted from 0."
            )
        found.add(int(piece))
    return sorted(found)


def _steps(figures: Consistency | Agreement, seen: Look) -> dict[str, Tensor]:
    """How large the step to each frame from the one before is, by every measure of change."""
    changes = {name: getattr(figures, name) for name in ("warped_error", "flicker")}
    return changes | {name: values.diff().abs() for name, values in asdict(seen).items()}


def _chart(
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


NODES = [TemporalConsistency]
