"""Noise for coherent clips: ZS²'s dependency noise (arXiv 2407.21475), and priors beside it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..frames.schedule import frame_schedule
from ..noise.dependency import MOST_ITERATIONS, SEARCHED_FRAMES, SOLVERS, dependency_noise, require_reached
from ..noise.divergence import DIVERGENCES
from ..noise.measure import Moments
from ..noise.priors import PRIORS, iid, mixed, progressive
from ..noise.streams import Carried, Draw, NoiseModel, clip_noise, frames_axis, generator, plain_noise
from ..samplers.latents import noise_for
from .node import InputError, Node
from .schedule_input import schedule_input, schedule_of

CATEGORY = "coherence/noise"
MAX_KL = 1.65
_LAST_FRAME = "noise_frame"
"""Entry of a LATENT: the number of a 5-D noise's last frame; in 4-D noise batch_index tells it."""


@dataclass(frozen=True)
class ClipNoise:
    """A NOISE: what SamplerCustomAdvanced and AddNoise ask for noise."""

    seed: int
    model: NoiseModel
    carried: Carried | None = None

    def generate_noise(self, input_latent: dict) -> Tensor | NestedTensor:
        """CPU noise in the shape and dtype of ``input_latent["samples"]``; honours its ``batch_index``.

        Of a latent of several modalities the 5-D parts are clips, of one frame, too; the others get plain noise.
        """
        samples = input_latent["samples"]
        indices = input_latent.get("batch_index")
        source = generator(self.seed)
        if not samples.is_nested:
            return clip_noise(samples.shape, self.model, self.seed, source, indices, self.carried).to(samples.dtype)
        return NestedTensor(
            (
                clip_noise(part.shape, self.model, self.seed, source, indices, self.carried, axis=2)
                if part.ndim == 5
                else plain_noise(part.shape, source, indices)
            ).to(part.dtype)
            for part in samples.unbind()
        )


@dataclass(frozen=True, kw_only=True)
class DependencyClipNoise(ClipNoise):
    """A NOISE that follows a schedule: ``kl(n)`` is the λ of frames 0 to n − 1 of the whole clip, in the nats of
    ``divergence``.
    """

    divergence: str
    kl: Callable[[int], list[float]]


def seed_input() -> io.Int.Input:
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


class DependencyNoise(Node):
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
        # The model's frame 0, in the clip's numbers, from which schedule and search count.
        start = 0 if carried is None else carried.number

        def kl_of(frames: int) -> list[float]:
            return frame_schedule(schedule, kl, frames, 0.0, MAX_KL).tolist()

        def model(first: Tensor, draw: Draw, frames: int) -> Iterator[Tensor]:
            return dependency_noise(
                first,
                draw,
                kl_of(start + frames)[start:],
                divergence=divergence,
                solver=solver,
                candidates=random_candidates,
                line_iterations=line_iterations,
                searched_frames=SEARCHED_FRAMES - start,
            )

        return io.NodeOutput(DependencyClipNoise(noise_seed, model, carried, divergence=divergence, kl=kl_of))


class VideoNoisePrior(Node):
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
            category=CATEGORY,
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
        made = noise_for(noise, _in_float32(latent_image))
        frames, start = clip_of(made), first_frame(noise)
        latent: dict = {"samples": frames}
        indices = latent_image.get("batch_index")
        if frames_axis_of(noise, made) == 0:
            latent["batch_index"] = [start + number for number in (range(len(frames)) if indices is None else indices)]
            return io.NodeOutput(latent)
        latent[_LAST_FRAME] = start + frames.shape[2] - 1
        return io.NodeOutput(latent if indices is None else latent | {"batch_index": indices})


def _in_float32(latent: dict) -> dict:
    """A LATENT whose noise keeps every bit, whatever the precision of latents."""
    samples = latent["samples"]
    if samples.is_nested:
        return latent | {"samples": NestedTensor(part.float() for part in samples.unbind())}
    return latent | {"samples": samples.float()}


def _carried(latent: dict) -> Carried:
    """Of ``previous``. InputError where a clip's last frame is no noise."""
    carried = Carried.of(clip_of(latent["samples"]), latent.get("batch_index"), latent.get(_LAST_FRAME))
    for frame in carried.frames.values():
        moments = Moments.of(frame)
        if not moments.are_of_noise(frame.numel()):
            raise InputError(
                f"previous is no noise: its last frame has mean {moments.mean:.2f}, standard deviation "
                f"{moments.std:.2f} and correlation {moments.neighbours:.2f} of adjacent cells, expected about 0, 1 "
                "and 0. It is probably a sampler's output. Connect the latent of Noise Frames."
            )
    return carried


def first_frame(noise) -> int:
    """The number of the first frame that a NOISE makes: not 0 where it goes on from an earlier clip."""
    carried = getattr(noise, "carried", None)
    return 0 if carried is None else carried.number + 1


def frames_axis_of(noise, made: Tensor | NestedTensor) -> int:
    """Where the frames lie in what a NOISE ``made``: 0, the batch, or 2; see :func:`..noise.streams.frames_axis`."""
    clips = clip_of(made)
    if made.is_nested and clips.ndim == 5:
        return 2
    return frames_axis(clips.shape, getattr(noise, "carried", None))


def clip_of(noise: Tensor | NestedTensor) -> Tensor:
    """The clips of a noise as they lie in a LATENT, 4-D or 5-D: of several modalities the first 5-D part."""
    parts = noise.unbind() if noise.is_nested else [noise]
    clips = [part for part in parts if part.ndim == 5 or (part.ndim == 4 and len(parts) == 1)]
    if not clips:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"Expected the noise of a clip, (frames, channels, height, width) or (batch, channels, frames, "
            f"height, width), but it has shape {shapes}. Connect the latent of a clip."
        )
    return clips[0]


NODES = [DependencyNoise, VideoNoisePrior, NoiseFrames]
