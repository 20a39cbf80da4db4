"""Noise for coherent clips: ZS²'s dependency noise (arXiv 2407.21475), priors beside it, a chart."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..noise.dependency import SOLVERS, dependency_noise
from ..noise.divergence import DIVERGENCES, INDEPENDENT
from ..noise.measure import correlation, neighbour_alpha, neighbour_kl
from ..noise.priors import PRIORS, iid, mixed, progressive
from ..noise.schedule import frame_schedule, parse_schedule
from ..noise.streams import Draw, NoiseModel, clip_frames, clip_noise, generator, plain_noise
from .charts import COLOURS, draw_heat_map, new_figure, render, style_axes

CATEGORY = "coherence/noise"
MAX_KL = 1.65


@dataclass(frozen=True)
class ClipNoise:
    """A NOISE: what SamplerCustomAdvanced and AddNoise ask for noise."""

    seed: int
    model: NoiseModel

    def generate_noise(self, input_latent: dict) -> Tensor | NestedTensor:
        """CPU noise in the shape and dtype of ``input_latent["samples"]``; honours its ``batch_index``.

        Of a latent of several modalities the 5-D parts are clips; the others get plain noise.
        """
        samples = input_latent["samples"]
        indices = input_latent.get("batch_index")
        source = generator(self.seed)
        if not samples.is_nested:
            return clip_noise(samples.shape, self.model, self.seed, source, indices).to(samples.dtype)
        return NestedTensor(
            (
                clip_noise(part.shape, self.model, self.seed, source, indices)
                if part.ndim == 5
                else plain_noise(part.shape, source, indices)
            ).to(part.dtype)
            for part in samples.unbind()
        )


def _seed_input() -> io.Int.Input:
    return io.Int.Input(
        "noise_seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Same seed, same noise, on every machine. The first frame is the one RandomNoise gives for "
        "this seed. Change it for another clip.",
    )


def _noise_output() -> io.Noise.Output:
    return io.Noise.Output(tooltip="For the noise input of SamplerCustomAdvanced or AddNoise.")


class DependencyNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DependencyNoise",
            display_name="Dependency Noise (ZS²)",
            category=CATEGORY,
            description="Noise for a clip in which every frame differs from the one before by a chosen "
            "amount: a small kl keeps the picture steady, a large one lets it change. Connect it to "
            "SamplerCustomAdvanced.",
            search_aliases=["correlated noise", "video noise", "temporal noise", "zs2", "zero-shot video"],
            inputs=[
                _seed_input(),
                io.Float.Input(
                    "kl",
                    default=0.01,
                    min=0.0,
                    max=MAX_KL,
                    step=0.001,
                    round=0.0001,
                    tooltip="How far each frame's noise is from the one before (KL divergence in nats, the "
                    "paper's λ). 0: a still picture. 0.01: slow change. 0.1: fast change. 1.65: every frame "
                    "independent.",
                ),
                io.String.Input(
                    "kl_schedule",
                    default="",
                    placeholder="0:0.01, 8:0.1",
                    tooltip="kl for each frame as frame:value pairs, linear in between, frames counted from "
                    "0; values 0 to 1.65. Takes the place of kl. Use it to let motion start, rest or speed "
                    "up within the clip.",
                ),
                io.Combo.Input(
                    "divergence",
                    options=list(DIVERGENCES),
                    default="generalised",
                    tooltip="How the divergence of two noises is measured. generalised: the least noisy. "
                    "pointwise: the authors' own code, to compare with it. softmax: 1 instead of 1.65 is "
                    "independent.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="bisection",
                    tooltip="How the blend with the previous frame is found. bisection: meets kl within "
                    "0.0001. line_search: the paper's Algorithm 1, coarser. closed_form: meets kl on "
                    "average, fastest.",
                    advanced=True,
                ),
                io.Int.Input(
                    "random_candidates",
                    default=10,
                    min=1,
                    max=64,
                    tooltip="Fresh noises drawn for each frame; the one whose divergence is nearest kl is "
                    "blended in. 1 to 64. Frames after the 16th always use one, so that the noise of long "
                    "clips stays normal.",
                    advanced=True,
                ),
                io.Int.Input(
                    "line_iterations",
                    default=15,
                    min=1,
                    max=100,
                    tooltip="Steps of the line_search solver, 1 to 100; the others do not use it. The "
                    "paper's 15 leave the divergence up to 0.01 above kl; with 30 it is within 0.0001.",
                    advanced=True,
                ),
            ],
            outputs=[_noise_output()],
        )

    @classmethod
    def execute(
        cls,
        noise_seed: int,
        kl: float,
        kl_schedule: str,
        divergence: str,
        solver: str,
        random_candidates: int,
        line_iterations: int,
    ) -> io.NodeOutput:
        parse_schedule(kl_schedule, 0.0, MAX_KL)  # a slip in it shows at this node, not at the sampler

        def model(first: Tensor, draw: Draw, frames: int) -> Iterator[Tensor]:
            return dependency_noise(
                first,
                draw,
                frame_schedule(kl_schedule, kl, frames, 0.0, MAX_KL).tolist(),
                divergence=divergence,
                solver=solver,
                candidates=random_candidates,
                line_iterations=line_iterations,
            )

        return io.NodeOutput(ClipNoise(noise_seed, model))


class VideoNoisePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VideoNoisePrior",
            display_name="Video Noise Prior",
            category=CATEGORY,
            description="Noise for a clip by one of three classic models: independent frames, frames that "
            "share one common noise, or frames that drift away from the first. Connect it to "
            "SamplerCustomAdvanced.",
            search_aliases=["mixed noise", "progressive noise", "pyoco", "shared noise", "correlated noise"],
            inputs=[
                _seed_input(),
                io.Combo.Input(
                    "prior",
                    options=list(PRIORS),
                    default="mixed",
                    tooltip="iid: independent frames. mixed: any two frames share the same amount; for a "
                    "pose that should hold. progressive: neighbours share most, distant frames little; for "
                    "slow drift.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the noise that is common, 0 (independent) to 1 (all frames equal). "
                    "Raise it if the clip flickers. The correlation of neighbours is alpha for mixed, "
                    "√alpha for progressive.",
                ),
            ],
            outputs=[_noise_output()],
        )

    @classmethod
    def execute(cls, noise_seed: int, prior: str, alpha: float) -> io.NodeOutput:
        models: dict[str, NoiseModel] = {
            "iid": iid,
            "mixed": partial(mixed, alpha=alpha),
            "progressive": partial(progressive, alpha=alpha),
        }
        return io.NodeOutput(ClipNoise(noise_seed, models[prior]))


class NoiseCorrelation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseCorrelation",
            display_name="Noise Correlation",
            category=CATEGORY,
            description="Shows how much noise the frames of a clip share: a chart to look at and the "
            "figures as JSON. Works with any NOISE, so other noise can be compared with ours.",
            search_aliases=["noise chart", "noise statistics", "correlation matrix", "kl divergence"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to look at: the one that goes into the sampler."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent that goes into the sampler: it gives the number and size of the "
                    "frames, at least two. Of a batch of video latents the first clip is shown.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "chart",
                    tooltip="Correlation of every two frames; KL and α of every frame and the one before.",
                ),
                io.String.Output(
                    "report",
                    tooltip="The same figures as JSON, with mean and standard deviation of each frame.",
                ),
            ],
        )

    @classmethod
    def execute(cls, noise, latent_image: dict) -> io.NodeOutput:
        frames = _clip_of(noise.generate_noise(latent_image)).float()
        if len(frames) < 2:
            raise ValueError(
                "Expected a clip of two frames or more, but the latent holds one. Raise the batch size of a "
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
        return io.NodeOutput(_chart(correlations, kl, alpha), json.dumps(report, indent=2))


def _clip_of(noise: Tensor | NestedTensor) -> Tensor:
    """The frames (F, C, H, W) of a noise: of several modalities the first 5-D part, of several clips the
    first.
    """
    parts = noise.unbind() if noise.is_nested else [noise]
    clips = [part for part in parts if part.ndim == 5 or (part.ndim == 4 and len(parts) == 1)]
    if not clips:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"Expected the noise of a clip, (frames, channels, height, width) or (batch, channels, frames, "
            f"height, width), but it has shape {shapes}. Connect the latent of a clip."
        )
    return clip_frames(clips[0])


def _chart(correlations: Tensor, kl: Tensor, alpha: Tensor) -> Tensor:
    """IMAGE: the correlations (F, F) as a heat map; beside it KL and α (F − 1,) of frames 1 to F − 1."""
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

    frames = range(1, count)
    style_axes(
        upper,
        "KL divergence from the frame before",
        "",
        "KL (nats)",
        note=f"0: the same noise.  {independent:.2f}: independent noise.  Mean here: {kl.mean():.4f}.",
    )
    upper.plot(frames, kl, color=COLOURS[0], marker="o", markersize=4, clip_on=False)
    upper.set_ylim(0, max(1.25 * kl.max().item(), 1e-3))
    style_axes(
        lower,
        "α: share of the noise kept from the frame before",
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


NODES = [DependencyNoise, VideoNoisePrior, NoiseCorrelation]
