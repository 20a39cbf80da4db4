"""TemporalConsistency: how steady a clip is, as figures and as a chart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import comfy.model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..metrics.consistency import Agreement, Consistency, agreement, means, temporal_consistency
from ..metrics.look import Look, drifts, look, seam_jumps
from .charts import drawn
from .checks import InputError
from .consistency_chart import LINES, draw_consistency
from .content import content_of, texts_of
from .flow_model import flow_input, flow_of
from .node import Node
from .reports import to_json


class TemporalConsistency(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalConsistency",
            display_name="Temporal Consistency",
            category="coherence/metrics",
            description="Measures how steady a clip is from frame to frame: SSIM, PSNR, flow-warped error, flicker and "
            "motion, and how fast brightness, contrast, saturation and sharpness drift, as a chart and as JSON. With a "
            "reference, such as the clip before an edit, it compares the two. With an image encoder it also "
            "measures how much the content of the frames agrees, and how well they fit a prompt.",
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
                    tooltip="An image encoder, from Load CLIP Vision, to compare what the frames show. CLIP gives the "
                    "papers' frame consistency and a background consistency as in VBench, DINOv2 a subject consistency "
                    "as in VBench. Leave it empty to measure pixels only.",
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
                flow_input("Connect one to compare with published figures of warped error, or for fast motion."),
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
        flow: Any = None,
    ) -> io.NodeOutput:
        device, measure = comfy.model_management.get_torch_device(), flow_of(flow)
        frames, height, width, _ = images.shape
        at = _seams_of(seams, frames)
        texts = texts_of(clip_vision, clip, reference, prompt, reference_prompt)
        encoded = 0 if clip_vision is None else frames * (1 if reference is None else 2)
        bar = ProgressBar(encoded + (2 * frames - 1 if reference is None else 5 * frames - 2))

        def progress() -> None:
            bar.update(1)

        images = images[..., :3]
        reference = None if reference is None else reference[..., :3]
        content = {}
        if clip_vision is not None:  # first: it may be refused
            content = content_of(clip_vision, clip, {"clip": images, "reference": reference}, texts, progress)
        figures: dict[str, Consistency | Agreement] = {}
        looks: dict[str, Look] = {}
        if reference is not None:
            figures["against_reference"] = agreement(images, reference, device, progress, measure)
            figures["reference"] = temporal_consistency(reference, device, progress, measure)
            looks["reference"] = look(reference, device, progress)
        figures["clip"] = temporal_consistency(images, device, progress, measure)
        looks["clip"] = look(images, device, progress)
        figures = {name: figures[name] for name in LINES if name in figures}
        measured = {name: {"mean": means(each), **asdict(each)} for name, each in figures.items()}
        for name, shown in content.items():
            measured[name]["content"] = {"mean": {key: each.nanmean() for key, each in shown.items()}, **shown}
        for name, seen in looks.items():
            drift = {key: {"per_100_frames": each.value, "interval": each[1:]} for key, each in drifts(seen).items()}
            measured[name] |= {"look": asdict(seen), "drift": drift}
            if at:
                measured[name]["seams"] = seam_jumps(_steps(figures[name], seen), at)
        report = {"frames": frames, "height": height, "width": width, **measured}
        return io.NodeOutput(to_json(report, indent=2), drawn(draw_consistency, figures, frames, looks, at, content))


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


NODES = [TemporalConsistency]
