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
            description="Noise for a clip in which each frame differs from the previous one by a chosen amount. A "
            "small kl keeps the picture steady; a large one lets it change. Connect it to SamplerCustomAdvanced.",
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
                    tooltip="How much each frame's noise differs from the previous one (KL divergence in nats, the "
                    "paper's λ). 0: a still picture. 0.01: slow change. 0.1: fast change. 1.65: independent frames.",
                ),
                schedule_input(
                    "kl_schedule",
                    "0:0.01, 8:0.1",
                    "kl for each frame as frame:value pairs with linear interpolation; frames count from 0, values "
                    "are 0 to 1.65. Also takes a list of numbers from a schedule node. Replaces kl. Use it to let "
                    "motion start, rest or speed up within the clip.",
                ),
                io.Combo.Input(
                    "divergence",
                    options=list(DIVERGENCES),
                    default="generalised",
                    tooltip="How the divergence between frames is measured. generalised: the least noisy. pointwise: "
                    "as in the authors' code, for comparison. softmax: frames are independent at 1 instead of 1.65.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="bisection",
                    tooltip="How the blend with the previous frame is found. bisection: meets kl within 0.0001. "
                    "line_search: the paper's Algorithm 1, less precise. closed_form: meets kl on average; the "
                    "fastest.",
                    advanced=True,
                ),
                io.Int.Input(
                    "random_candidates",
                    default=10,
                    min=1,
                    max=64,
                    tooltip="Number of new noises drawn per frame, 1 to 64. The one whose divergence is nearest to kl "
                    "is blended in. Frames after the 16th always use one, so that the noise of long clips stays "
                    "normally distributed.",
                    advanced=True,
                ),
                io.Int.Input(
                    "line_iterations",
                    default=15,
                    min=1,
                    max=MOST_ITERATIONS,
                    tooltip="Steps of the line_search solver, 1 to 100; other solvers ignore it. The paper's 15 can "
                    "leave the divergence up to 0.01 above kl; 30 brings it within 0.0001.",
                    advanced=True,
                ),
                io.Latent.Input(
                    "previous",
                    optional=True,
                    tooltip="The noise of an earlier clip, from Noise Frames. This clip continues after its last "
                    "frame. With the same settings, both parts equal one long clip's noise.",
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
            description="Noise for a clip from one of three classic models: independent frames, frames that share one "
            "common noise, or frames that drift away from the first. Connect it to SamplerCustomAdvanced.",
            search_aliases=["mixed noise", "progressive noise", "pyoco", "shared noise", "correlated noise"],
            inputs=[
                seed_input(),
                io.Combo.Input(
                    "prior",
                    options=list(PRIORS),
                    default="mixed",
                    tooltip="iid: independent frames. mixed: any two frames share the same amount, for a steady pose. "
                    "progressive: neighbours share most and distant frames little, for slow drift.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the noise that frames have in common, 0 (independent) to 1 (identical). Raise "
                    "it if the clip flickers. The correlation of neighbours is alpha for mixed, √alpha for "
                    "progressive.",
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
            description="Outputs the frames of a clip's noise as a latent. Connect it to previous of a second "
            "Dependency Noise, which continues where this clip ends, so a long clip can be made in several runs.",
            search_aliases=["continue clip", "noise to latent", "extend video", "long clip"],
            inputs=[
                io.Noise.Input(
                    "noise", tooltip="The noise of the clip to continue: the one that goes into its sampler."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent that goes into its sampler. It sets the number and size of the frames.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    tooltip="The noise of every frame, with the frame numbers. For a video with sound, only the noise "
                    "of the pictures.",
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
                f"previous is not noise: its last frame has mean {moments.mean:.2f}, standard deviation "
                f"{moments.std:.2f} and correlation {moments.neighbours:.2f} of adjacent cells, expected about 0, 1 "
                "and 0. It is probably a sampler's output. Connect the latent of Noise Frames."
            )
    return carried


NODES = [DependencyNoise, VideoNoisePrior, NoiseFrames]
