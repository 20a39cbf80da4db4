"""NOISE for clips: the objects that samplers ask for noise, and the clips in what any of them makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..noise.dependency import SEARCHED_FRAMES, dependency_noise
from ..noise.numbers import tell
from ..noise.streams import Carried, Draw, NoiseModel, clip_noise, frames_axis, generator, plain_noise
from .latents import noise_for, samples_for
from .unfit import explain_unfit_inputs

LAST_FRAME = "noise_frame"
"""Entry of a LATENT: the number of the last frame of noise whose frames are on axis 2; else batch_index tells it."""


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
            made = clip_noise(samples.shape, self.model, self.seed, source, indices, self.carried).to(samples.dtype)
            return tell(made, first_frame(self), indices)
        return NestedTensor(
            (
                clip_noise(part.shape, self.model, self.seed, source, indices, self.carried, axis=2)
                if part.ndim == 5
                else plain_noise(part.shape, source, indices)
            ).to(part.dtype)
            for part in samples.unbind()
        )

    def anew(self, seed: int) -> ClipNoise:
        """Other noise of the same model, of the whole clip: nothing is carried over from an earlier one."""
        return replace(self, seed=seed, carried=None)


@dataclass(frozen=True, kw_only=True)
class DependencyClipNoise(ClipNoise):
    """A NOISE that follows a schedule: ``kl(n)`` is the λ of frames 0 to n − 1 of the whole clip, in the nats of
    ``divergence``.
    """

    divergence: str
    kl: Callable[[int], list[float]]
    search: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, seed: int, kl: Callable[[int], list[float]], carried: Carried | None, *, divergence: str, **search: Any
    ) -> DependencyClipNoise:
        """``search``: as :func:`..noise.dependency.dependency_noise` takes it."""
        # The model's frame 0, in the clip's numbers, from which schedule and search count.
        start = 0 if carried is None else carried.number

        def model(first: Tensor, draw: Draw, frames: int) -> Iterator[Tensor]:
            return dependency_noise(
                first,
                draw,
                kl(start + frames)[start:],
                divergence=divergence,
                searched_frames=SEARCHED_FRAMES - start,
                **search,
            )

        return cls(seed, model, carried, divergence=divergence, kl=kl, search=search)

    def anew(self, seed: int) -> DependencyClipNoise:
        return self.of(seed, self.kl, None, divergence=self.divergence, **self.search)


@dataclass(frozen=True)
class GivenNoise:
    """A NOISE that is given: sampling starts at it as it is."""

    noise: Tensor
    seed: int = 0

    @classmethod
    def of(cls, model: ModelPatcher, latent: dict) -> GivenNoise:
        """The noise with which ``model`` starts at ``latent``, at its highest noise level."""
        sampling = model.get_model_object("model_sampling")
        with explain_unfit_inputs(model, latent):
            x = model.get_model_object("process_latent_in")(samples_for(model, latent))
        scale = sampling.noise_scaling(sampling.sigma_max, torch.ones(()), torch.zeros(()), max_denoise=True)
        return cls((x / scale).cpu())

    def generate_noise(self, input_latent: dict) -> Tensor:
        wanted = input_latent["samples"].shape
        if self.noise.shape != wanted:
            raise ValueError(
                f"NoiseFromLatent holds noise of shape {tuple(self.noise.shape)}, but the sampler's latent_image has "
                f"shape {tuple(wanted)}. Use the latent that was inverted, or an empty one of its size."
            )
        return self.noise


def noise_latent(noise: Any, latent: dict) -> dict:
    """A LATENT of what a NOISE makes for ``latent``, which tells the frames' numbers; :func:`carried_by` reads it."""
    made = noise_for(noise, _in_float32(latent))
    frames, start = clip_of(made), first_frame(noise)
    result: dict = {"samples": frames}
    indices = latent.get("batch_index")
    if frames_axis_of(noise, made) == 0:
        return result | {"batch_index": [start + number for number in (indices or range(len(frames)))]}
    result[LAST_FRAME] = start + frames.shape[2] - 1
    return result if indices is None else result | {"batch_index": indices}


def carried_by(latent: dict) -> Carried:
    """Where the clips of a LATENT of noise ended."""
    return Carried.of(clip_of(latent["samples"]), latent.get("batch_index"), latent.get(LAST_FRAME))


def _in_float32(latent: dict) -> dict:
    """A LATENT whose noise keeps every bit, whatever the precision of latents."""
    samples = latent["samples"]
    if samples.is_nested:
        return latent | {"samples": NestedTensor(part.float() for part in samples.unbind())}
    return latent | {"samples": samples.float()}


def first_frame(noise: Any) -> int:
    """The number of the first frame that a NOISE makes: not 0 where it goes on from an earlier clip."""
    carried = getattr(noise, "carried", None)
    return 0 if carried is None else carried.number + 1


def frames_axis_of(noise: Any, made: Tensor | NestedTensor) -> int:
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
