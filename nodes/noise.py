"""Noise for coherent clips: ZS²'s dependency noise (arXiv 2407.21475), and priors beside it."""

from functools import partial
from math import sqrt

from comfy_api.latest import io
from torch import Tensor

from ..frames.schedule import frame_schedule
from ..noise.chain import Chain, KeyFrames
from ..noise.dependency import MOST_ITERATIONS, SOLVERS, require_reached
from ..noise.divergence import DIVERGENCES
from ..noise.measure import Moments
from ..noise.priors import PRIORS, iid, mixed, progressive
from ..noise.streams import Carried, NoiseModel
from ..samplers.noises import (
    ChainNoise,
    ClipNoise,
    DependencyClipNoise,
    carried_by,
    key_frames_of,
    noise_latent,
)
from .checks import InputError
from .inputs import NOISE, noise_seed_input, schedule_input, schedule_of
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
            search_aliases=["correlated noise", "video noise", "zs2", "zero-shot video", "seamless loop"],
            inputs=[
                noise_seed_input(),
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
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of new noises drawn per frame, 1 to 64, if orthogonal is off. The one whose "
                    "divergence is nearest to kl is blended in. The paper uses 10, which adds outliers with each "
                    "frame.",
                    advanced=True,
                ),
                io.Int.Input(
                    "line_iterations",
                    default=15,
                    min=1,
                    max=MOST_ITERATIONS,
                    tooltip="Steps of the line_search solver, 1 to 100; other solvers ignore it. The paper's 15 are "
                    "enough for kl 0.01, but not for most values near it. With 30 the divergence is within 0.0001 of "
                    "kl.",
                    advanced=True,
                ),
                io.Latent.Input(
                    "previous",
                    optional=True,
                    tooltip="The noise of an earlier clip, from Noise Frames. This clip continues after its last "
                    "frame. With the same settings, both parts equal one long clip's noise.",
                ),
                io.Boolean.Input(
                    "orthogonal",
                    default=True,
                    optional=True,
                    tooltip="Makes each frame's new noise orthogonal to the previous frame, so that the noise of clips "
                    "of any length stays normally distributed. Turn it off only to reproduce the paper.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    optional=True,
                    tooltip="Makes the last frame a neighbour of the first, for a clip that repeats without a jump. kl "
                    "is met on average, whatever the solver. Cannot be combined with previous.",
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
        kl_schedule: str | float | list[float],
        divergence: str,
        solver: str,
        random_candidates: int,
        line_iterations: int,
        previous: dict | None = None,
        orthogonal: bool = True,
        loop: bool = False,
    ) -> io.NodeOutput:
        schedule = schedule_of("kl_schedule", kl_schedule, 0.0, MAX_KL)
        if loop and previous is not None:
            raise InputError(
                "loop is on, but previous is connected: a clip that continues an earlier one does not end where it "
                "began. Turn loop off, or disconnect previous."
            )
        if solver == "line_search" and not schedule and not loop:
            require_reached(kl, divergence, line_iterations)
        carried = None if previous is None else _carried(previous)

        def kl_of(frames: int) -> list[float]:
            return frame_schedule(schedule, kl, frames, 0.0, MAX_KL).tolist()

        noise = DependencyClipNoise.of(
            noise_seed,
            kl_of,
            carried,
            divergence=divergence,
            loop=loop,
            solver=solver,
            orthogonal=orthogonal,
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
                noise_seed_input(),
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
        if prior == "progressive":
            model = partial(progressive, alpha=alpha)
            chain = Chain(lambda start: model, lambda frames: [sqrt(alpha)] * frames)
            return io.NodeOutput(ChainNoise.of_chain(noise_seed, chain))
        models: dict[str, NoiseModel] = {"iid": iid, "mixed": partial(mixed, alpha=alpha)}
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


class KeyframeNoise(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KeyframeNoise",
            display_name="Keyframe Noise",
            category=NOISE,
            description="Makes a clip's noise pass through given frames, such as the inverted noise of a picture, so "
            "that the clip begins with that picture. The other frames keep the correlations of the connected noise.",
            search_aliases=["key frames", "first frame", "image to video", "picture to clip", "noise bridge"],
            inputs=[
                io.Noise.Input(
                    "noise",
                    tooltip="The clip's noise: from Dependency Noise, or Video Noise Prior set to progressive.",
                ),
                io.Latent.Input(
                    "keyframes",
                    tooltip="One frame of noise per key frame, as Noise Frames outputs it. Pass an inverted picture "
                    "through Noise from Latent and Noise Frames first.",
                ),
                io.String.Input(
                    "frames",
                    default="0",
                    placeholder="0, 8, -1",
                    tooltip="The frame number of each key frame, separated by commas. Frames count from 0 in the whole "
                    "clip; negative numbers count from its end, so -1 is the last frame.",
                ),
            ],
            outputs=[_noise_output()],
        )

    @classmethod
    def execute(cls, noise, keyframes: dict, frames: str) -> io.NodeOutput:
        if not isinstance(noise, ChainNoise):
            raise InputError(
                f"noise is {type(noise).__name__}, expected noise in which a frame depends on its neighbours alone. "
                "Connect Dependency Noise, or Video Noise Prior set to progressive."
            )
        if noise.keys is not None:
            raise InputError(
                "noise has key frames already, from another Keyframe Noise. Put all key frames into one: join their "
                "latents, and list all numbers in frames."
            )
        numbers, given = _frame_numbers(frames), key_frames_of(keyframes)
        if len(numbers) != len(given):
            raise InputError(
                f"frames names {len(numbers)} frames ({frames.strip() or 'none'}), but keyframes holds {len(given)}, "
                "expected a number for each. Change frames, or join the key frames' latents."
            )
        for number, frame in zip(numbers, given, strict=True):
            _require_noise(
                f"keyframes is not noise: the one for frame {number}",
                frame,
                "Pass an inverted picture through Noise from Latent and Noise Frames.",
            )
        return io.NodeOutput(noise.through(KeyFrames(numbers, given)))


def _frame_numbers(text: str) -> list[int]:
    numbers = []
    for piece in filter(None, (piece.strip() for piece in text.replace("\n", ",").split(","))):
        try:
            numbers.append(int(piece))
        except ValueError:
            raise InputError(
                f"frames: {piece!r} is not a frame number, expected whole numbers separated by commas, such as "
                "'0, 8, -1'."
            ) from None
        if numbers.count(numbers[-1]) > 1:
            raise InputError(f"frames names frame {numbers[-1]} twice. Keep one of the two.")
    return numbers


def _carried(latent: dict) -> Carried:
    """Of ``previous``. InputError where a clip's last frame is no noise."""
    carried = carried_by(latent)
    for frame in carried.frames.values():
        _require_noise("previous is not noise: its last frame", frame, "Connect the latent of Noise Frames.")
    return carried


def _require_noise(what: str, frame: Tensor, cure: str) -> None:
    moments = Moments.of(frame)
    if not moments.are_of_noise(frame.numel()):
        raise InputError(
            f"{what} has mean {moments.mean:.2f}, standard deviation {moments.std:.2f} and correlation "
            f"{moments.neighbours:.2f} of adjacent cells, expected about 0, 1 and 0. It is probably a sampler's "
            f"output. {cure}"
        )


NODES = [DependencyNoise, VideoNoisePrior, NoiseFrames, KeyframeNoise]
