"""NOISE for clips: the objects that samplers ask for noise, and the clips in what any of them makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..noise.chain import Chain, KeyFrames
from ..noise.dependency import dependency_noise
from ..noise.divergence import INDEPENDENT
from ..noise.numbers import tell
from ..noise.streams import (
    Carried,
    Draw,
    Indices,
    NoiseModel,
    clip_frames,
    clip_noise,
    frames_axis,
    generator,
    new_frames,
    plain_noise,
)
from .latents import noise_for, samples_for
from .unfit import explain_unfit_inputs

AnyNoise = TypeVar("AnyNoise", bound="ClipNoise")
AnyChain = TypeVar("AnyChain", bound="ChainNoise")

LAST_FRAME = "noise_frame"
"""Entry of a LATENT: the number of the last frame of noise whose frames are on axis 2; else batch_index tells it."""
CLIP_END = "noise_clip_end"
"""Entry of a LATENT of a whole clip of noise with a batch_index: the number after its last frame. Nodes that take a
part out of it change batch_index alone."""


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
        indices = frame_numbers(input_latent, None if samples.is_nested else frames_axis(samples.shape, self.carried))
        if indices is not None and list(indices) == [*range(first_frame(self), input_latent.get(CLIP_END, 0))]:
            indices = None
        source = generator(self.seed)
        if not samples.is_nested:
            made = self._clips(samples, source, indices, frames_axis(samples.shape, self.carried))
            return tell(made, first_frame(self), indices)
        return NestedTensor(
            self._clips(part, source, indices, 2)
            if part.ndim == 5
            else plain_noise(part.shape, source, indices).to(part.dtype)
            for part in samples.unbind()
        )

    def anew(self: AnyNoise, seed: int) -> AnyNoise:
        """Other noise of the same model, of the whole clip: nothing is carried over from an earlier one."""
        return replace(self, seed=seed, carried=None)

    def _clips(self, samples: Tensor, source: torch.Generator, indices: Indices, axis: int) -> Tensor:
        model = self._model_for(samples.shape, indices, axis)
        return clip_noise(samples.shape, model, self.seed, source, indices, self.carried, axis).to(samples.dtype)

    def _model_for(self, shape: torch.Size, indices: Indices, axis: int) -> NoiseModel:
        return self.model


@dataclass(frozen=True, kw_only=True)
class ChainNoise(ClipNoise):
    """A NOISE whose frames are a chain, maybe a loop or through key frames."""

    chain: Chain
    keys: KeyFrames | None = None

    @classmethod
    def of_chain(
        cls: type[AnyChain], seed: int, chain: Chain, carried: Carried | None = None, **fields: Any
    ) -> AnyChain:
        return cls(seed, chain.model(0 if carried is None else carried.number), carried, chain=chain, **fields)

    def through(self, keys: KeyFrames) -> ChainNoise:
        """The same noise, conditioned on key frames."""
        return ChainNoise(self.seed, self.model, self.carried, chain=self.chain, keys=keys)

    def anew(self: AnyChain, seed: int) -> AnyChain:
        return replace(self, seed=seed, model=self.chain.model(), carried=None, keys=None)

    def _model_for(self, shape: torch.Size, indices: Indices, axis: int) -> NoiseModel:
        frames = new_frames(shape[axis], self.carried)
        if axis == 2:
            indices = None  # it names clips
        part = indices is not None  # frames 0 to k, too, may be the first of a longer clip
        if part and self.chain.loop:
            raise ValueError(_of_a_part("loop makes the last frame a neighbour of the first", indices))
        if self.keys is None:
            return self.model
        if part and self.keys.count_from_the_end:
            raise ValueError(_of_a_part("frames counts from the end of the clip", indices))
        keys = self.keys.of((shape[1], *shape[-2:]), frames, whole=not part)
        if self.carried is None:
            return self.chain.model(keys=keys)
        return self.chain.model(self.carried.number, keys, goes_on=True)


def _of_a_part(asked: str, indices: Indices) -> str:
    return (
        f"{asked}, but latent_image holds only frames {', '.join(map(str, indices or ()))} (its batch_index). Give the "
        "sampler the whole clip's latent, not one from LatentFromBatch, which does not tell where the clip ends."
    )


@dataclass(frozen=True, kw_only=True)
class DependencyClipNoise(ChainNoise):
    """A NOISE that follows a schedule: ``kl(n)`` is the λ of frames 0 to n − 1 of the whole clip, in the nats of
    ``divergence``.
    """

    divergence: str
    kl: Callable[[int], list[float]]

    @classmethod
    def of(
        cls,
        seed: int,
        kl: Callable[[int], list[float]],
        carried: Carried | None,
        *,
        divergence: str,
        loop: bool = False,
        **search: Any,
    ) -> DependencyClipNoise:
        """``search``: as :func:`..noise.dependency.dependency_noise` takes it. A ``loop`` meets λ on average."""
        independent = INDEPENDENT[divergence]

        def onward(start: int) -> NoiseModel:
            def model(first: Tensor, draw: Draw, frames: int) -> Iterator[Tensor]:
                return dependency_noise(first, draw, kl(start + frames)[start:], divergence=divergence, **search)

            return model

        def correlations(frames: int) -> list[float]:
            return [max(0.0, 1 - value / independent) for value in kl(frames)]

        return cls.of_chain(seed, Chain(onward, correlations, loop), carried, divergence=divergence, kl=kl)


@dataclass(frozen=True)
class GivenNoise:
    """A NOISE that is given: sampling starts at it as it is."""

    noise: Tensor | NestedTensor
    seed: int = 0

    @classmethod
    def of(cls, model: ModelPatcher, latent: dict) -> GivenNoise:
        """The noise with which ``model`` starts at ``latent``, at its highest noise level."""
        sampling = model.get_model_object("model_sampling")
        with explain_unfit_inputs(model, latent):
            x = model.get_model_object("process_latent_in")(samples_for(model, latent))
        scale = sampling.noise_scaling(sampling.sigma_max, torch.ones(()), torch.zeros(()), max_denoise=True)
        return cls((x / scale).cpu())

    def generate_noise(self, input_latent: dict) -> Tensor | NestedTensor:
        wanted = input_latent["samples"].shape
        if self.noise.shape != wanted:
            raise ValueError(
                f"NoiseFromLatent holds noise of shape {tuple(self.noise.shape)}, but the sampler's latent_image has "
                f"shape {tuple(wanted)}. Use the latent that was inverted, or an empty one of its size."
            )
        return self.noise.to(copy=True)  # FreeNoise of context windows shuffles it in place


def frame_numbers(latent: Mapping[str, Any], axis: int | None) -> Indices:
    """A LATENT's ``batch_index``; ``axis``: that of its frames, None in several modalities.

    Frames of one clip have no number in common. Where some, but not all, have, clips were joined (LatentBatch) or
    frames set between others: a new clip, whose frames count from 0. All alike, as LatentBatchSeedBehavior makes them,
    they ask for one noise.
    """
    indices = latent.get("batch_index")
    return None if axis == 0 and indices is not None and 1 < len({*indices}) < len(indices) else indices


def noise_latent(noise: Any, latent: dict) -> dict:
    """A LATENT of what a NOISE makes for ``latent``, which tells the frames' numbers; :func:`carried_by` reads it."""
    made = noise_for(noise, _in_float32(latent))
    frames, start = clip_of(made), first_frame(noise)
    result: dict = {"samples": frames}
    indices = frame_numbers(latent, axis := frames_axis_of(noise, made))
    if axis == 0:
        whole = {"batch_index": list(range(start, start + len(frames))), CLIP_END: start + len(frames)}
        return result | (whole if indices is None else {"batch_index": list(indices)})
    result[LAST_FRAME] = start + frames.shape[2] - 1
    return result if indices is None else result | {"batch_index": indices}


def carried_by(latent: dict) -> Carried:
    """Where the clips of a LATENT of noise ended."""
    return Carried.of(clip_of(latent["samples"]), latent.get("batch_index"), latent.get(LAST_FRAME))


def key_frames_of(latent: dict) -> list[Tensor]:
    """The frames (C, H, W) of a LATENT of noise, float32: a batch of pictures, or one clip. ValueError for several."""
    samples = clip_of(latent["samples"])
    if frames_axis(samples.shape) == 2 and len(samples) > 1:
        raise ValueError(
            f"keyframes holds {len(samples)} clips of {samples.shape[2]} frames, expected one clip, or a batch of one "
            "frame each. Pick one with LatentFromBatch."
        )
    return [*clip_frames(samples).float().cpu()]


def _in_float32(latent: dict) -> dict:
    """A LATENT whose noise keeps every bit, whatever the precision of latents."""
    samples = latent["samples"]
    if samples.is_nested:
        return latent | {"samples": NestedTensor(part.float() for part in samples.unbind())}
    return latent | {"samples": samples.float()}


def first_frame(noise: Any) -> int:
    """The number of the first frame that a NOISE makes: not 0 where it goes on from an earlier clip."""
    return new_frames(1, getattr(noise, "carried", None)).start


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
