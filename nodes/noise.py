"""Noise for coherent clips: ZS²'s dependency noise (arXiv 2407.21475), and priors beside it."""

from functools import partial

from comfy_api.latest import io

from ..frames.schedule import frame_schedule
from ..noise.dependency import MOST_ITERATIONS, SOLVERS, require_reached
from ..noise.divergence import DIVERGENCES
from ..noise.measure import Moments
from ..noise.priors import PRIORS, iid, mixed, progressive
from ..noise.streams import Carried, NoiseModel
from ..samplers.noises import ClipNoise, DependencyClipNoise, carried_by, noise_latent
from .checks import InputError
from .inputs import NOISE, schedule_input, schedule_of, seed_input
from .node import Node

MAX_KL = 1.65


def _noise_output() -> io.Noise.Output:
    return io.Noise.Output(tooltip="For the noise input of SamplerCustomAdvanced or AddNoise.")


class DependencyNoise(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DependencyNoise",
            display_name="Dependency Noise (ZS²)",
            category=NOISE,
            description="Noise for a clip in which every frame differs from the one before by a chosen "
            "amount: a small kl keeps the picture steady, a large one lets it change. Connect it to "
            "SamplerCustomAdvanced.",
            search_aliases=["correlated noise", "video noise", "temporal noise", "zs2", "zero-shot video"],
            inputs=[
                seed_input(),
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
                schedule_input(
                    "kl_schedule",
                    "0:0.01, 8:0.1",
                    "kl for each frame as frame:value pairs, linear in between, frames counted from 0; values 0 to "
                    "1.65. Or a list of numbers, as schedule nodes give it. Takes the place of kl. Use it to let "
                    "motion start, rest or speed up within the clip.",
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
                    "clips stays normally distributed.",
                    advanced=True,
                ),
                io.Int.Input(
                    "line_iterations",
                    default=15,
                    min=1,
                    max=MOST_ITERATIONS,
                    tooltip="Steps of the line_search solver, 1 to 100; the others do not use it. The "
                    "paper's 15 leave the divergence up to 0.01 above kl; with 30 it is within 0.0001.",
                    advanced=True,
                ),
                io.Latent.Input(
                    "previous",
                    optional=True,
                    tooltip="The noise of an earlier clip, from Noise Frames: this clip goes on after its last frame. "
                    "With the same settings both are one clip's noise, in two runs.",
                ),
            ],
            outputs=[_noise_output()],
        )

    @classmethod
    def execute(
        cls,
        noise_seed: int,
        kl: float,
        kl_schedule: str | float | list[float],
        divergence: str,
        solver: str,
        random_candidates: int,
        line_iterations: int,
        previous: dict | None = None,
    ) -> io.NodeOutput:
        schedule = schedule_of("kl_schedule", kl_schedule, 0.0, MAX_KL)
        if solver == "line_search" and not schedule:
            require_reached(kl, divergence, line_iterations)
        carried = None if previous is None else _carried(previous)

        def kl_of(frames: int) -> list[float]:
            return frame_schedule(schedule, kl, frames, 0.0, MAX_KL).tolist()

        noise = DependencyClipNoise.of(
            noise_seed,
            kl_of,
            carried,
            divergence=divergence,
            solver=solver,
            candidates=random_candidates,
            line_iterations=line_iterations,
        )
        return io.NodeOutput(noise)


class VideoNoisePrior(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VideoNoisePrior",
            display_name="Video Noise Prior",
            category=NOISE,
            description="Noise for a clip by one of three classic models: independent frames, frames that "
            "share one common noise, or frames that drift away from the first. Connect it to "
            "SamplerCustomAdvanced.",
            search_aliases=["mixed noise", "progressive noise", "pyoco", "shared noise", "correlated noise"],
            inputs=[
                seed_input(),
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


class NoiseFrames(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseFrames",
            display_name="Noise Frames",
            category=NOISE,
            description="The frames of a clip's noise as a latent. Connect it to previous of a second Dependency "
            "Noise, which goes on where this clip ends: a long clip in several runs.",
            search_aliases=["continue clip", "noise to latent", "extend video", "long clip"],
            inputs=[
                io.Noise.Input(
                    "noise", tooltip="The noise of the clip to continue: the one that goes into its sampler."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent that goes into its sampler: it gives the number and size of the frames.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    tooltip="The noise of every frame, and which frames of the clip they are. Where a video has sound, "
                    "that of the pictures.",
                )
            ],
        )

    @classmethod
    def execute(cls, noise, latent_image: dict) -> io.NodeOutput:
        return io.NodeOutput(noise_latent(noise, latent_image))


def _carried(latent: dict) -> Carried:
    """Of ``previous``. InputError where a clip's last frame is no noise."""
    carried = carried_by(latent)
    for frame in carried.frames.values():
        moments = Moments.of(frame)
        if not moments.are_of_noise(frame.numel()):
            raise InputError(
                f"previous is no noise: its last frame has mean {moments.mean:.2f}, standard deviation "
                f"{moments.std:.2f} and correlation {moments.neighbours:.2f} of adjacent cells, expected about 0, 1 "
                "and 0. It is probably a sampler's output. Connect the latent of Noise Frames."
            )
    return carried


NODES = [DependencyNoise, VideoNoisePrior, NoiseFrames]
