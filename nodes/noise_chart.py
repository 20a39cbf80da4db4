"""NoiseCorrelation: what a clip's noise looks like, whatever made it (ZS², arXiv 2407.21475, §3)."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..noise.divergence import INDEPENDENT
from ..noise.measure import correlation, neighbour_alpha, neighbour_kl
from ..noise.solvers import closed_form
from ..noise.streams import clip_frames
from ..samplers.latents import noise_for
from ..samplers.noises import DependencyClipNoise, clip_of, first_frame, frame_numbers, frames_axis_of
from .charts import COLOURS, RULE, draw_heat_map, drawn, new_figure, render, style_axes
from .inputs import NOISE
from .node import Node
from .reports import to_json


class NoiseCorrelation(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseCorrelation",
            display_name="Noise Correlation",
            category=NOISE,
            description="Shows how much noise the frames of a clip share, as a chart and as JSON. Works with any "
            "NOISE, so you can compare other noise with this pack's.",
            search_aliases=["noise chart", "noise statistics", "correlation matrix", "kl divergence"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to measure: the one that goes into the sampler."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent that goes into the sampler. It sets the number of frames (two or more) and "
                    "their size. For a batch of video latents, the first clip is shown.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "chart",
                    tooltip="Correlation of every pair of frames; KL and α between neighbouring frames.",
                ),
                io.String.Output(
                    "report",
                    tooltip="The same figures as JSON, with the mean and standard deviation of each frame.",
                ),
            ],
        )

    @classmethod
    def execute(cls, noise, latent_image: dict) -> io.NodeOutput:
        made = noise_for(noise, latent_image)
        axis = frames_axis_of(noise, made)
        frames = clip_frames(clip_of(made), axis).float()
        if len(frames) < 2:
            raise ValueError(
                "latent_image holds one frame, expected a clip of two or more. Raise the batch size of a "
                "picture latent, or the length of a video latent."
            )
        correlations = correlation(frames)
        kl, alpha = neighbour_kl(frames), neighbour_alpha(correlations)
        report = {
            "frames": len(frames),
            "seed": noise.seed,
            "neighbour_correlation": correlations.diagonal(1).mean().item(),
            "first_last_correlation": correlations[0, -1].item(),
            "kl": kl.tolist(),
            "kl_of_independent_frames": INDEPENDENT["generalised"],
            "alpha": alpha.tolist(),
            "mean": frames.flatten(1).mean(1).tolist(),
            "std": frames.flatten(1).std(1).tolist(),
            "correlation": correlations.tolist(),
        }
        sought = None
        shown = frame_numbers(latent_image, axis) if axis == 0 else None
        if isinstance(noise, DependencyClipNoise) and (sought := _schedule(noise, shown, len(frames))):
            independent = INDEPENDENT[noise.divergence]
            report["schedule"] = {
                "divergence": noise.divergence,
                "kl": sought,
                "achieved_kl": neighbour_kl(frames, noise.divergence).tolist(),
                "expected_alpha": [closed_form(value, independent) for value in sought],
            }
            sought = [min(value / independent, 1) for value in sought]
        return io.NodeOutput(drawn(_chart, correlations, kl, alpha, sought), to_json(report, indent=2))


def _schedule(noise: DependencyClipNoise, shown: Sequence[int] | None, frames: int) -> list[float] | None:
    """λ of all frames but the first; None where those ``shown``, a batch_index, do not follow one another."""
    first = first_frame(noise) if shown is None else shown[0]
    if shown is not None and list(shown) != list(range(shown[0], shown[0] + frames)):
        return None
    return noise.kl(first + frames)[first + 1 :]


def _chart(correlations: Tensor, kl: Tensor, alpha: Tensor, sought: list[float] | None) -> Tensor:
    """IMAGE: the correlations (F, F) as a heat map; beside it KL and α (F − 1,) of frames 1 to F − 1.

    ``sought``: the KL that the noise was made for, in units of that of independent noise.
    """
    from matplotlib.ticker import MaxNLocator

    count, independent = len(correlations), INDEPENDENT["generalised"]
    figure = new_figure(
        "How much noise do the frames share?",
        f"Correlation of neighbouring frames: {correlations.diagonal(1).mean():.3f} on average; of the first "
        f"and the last: {correlations[0, -1]:.3f}.  1 is a still picture, 0 a new picture every frame.",
    )
    heat = figure.add_axes((0.055, 0.09, 0.43, 0.71))
    upper = figure.add_axes((0.6, 0.53, 0.375, 0.25))
    lower = figure.add_axes((0.6, 0.09, 0.375, 0.25))

    style_axes(heat, "Correlation of every two frames", "Frame (counted from 0)", "Frame (counted from 0)")
    low = min(0.0, correlations.min().item())
    draw_heat_map(heat, correlations, "Correlation", low=low, high=1.0, form=".3f" if count <= 10 else ".2f")

    frames, key = range(1, count), "" if sought is None else "  (grey: the schedule)"
    style_axes(
        upper,
        f"KL divergence from the frame before{key}",
        "",
        "KL (nats)",
        note=f"0: the same noise.  {independent:.2f}: independent noise.  Mean here: {kl.mean():.4f}.",
    )
    if sought is not None:
        wide: dict[str, Any] = {"color": RULE, "linewidth": 7, "solid_capstyle": "round"}
        upper.plot(frames, [value * independent for value in sought], **wide)
        lower.plot(frames, [closed_form(value, 1) for value in sought], **wide)
    upper.plot(frames, kl, color=COLOURS[0], marker="o", markersize=4, clip_on=False)
    highest = max([*kl[kl.isfinite()].tolist(), *(value * independent for value in sought or ()), 0.0])
    upper.set_ylim(0, max(1.25 * highest, 1e-3))
    style_axes(
        lower,
        f"α: share of noise kept{key}",
        "Frame (counted from 0)",
        "α = correlation²",
        note=f"1: all of it.  0: none of it.  Mean here: {alpha.mean():.4f}.",
    )
    lower.plot(frames, alpha, color=COLOURS[1], marker="o", markersize=4, clip_on=False)
    lower.set_ylim(0, 1.05)
    for axes in (upper, lower):
        axes.set_xlim(0.5, count - 0.5)
    for axis in (heat.xaxis, heat.yaxis, upper.xaxis, lower.xaxis):
        axis.set_major_locator(MaxNLocator(nbins=16, steps=[1, 2, 4, 5, 10], integer=True, min_n_ticks=1))
    return render(figure)


NODES = [NoiseCorrelation]
