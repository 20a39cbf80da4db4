"""Random streams and the frames axis of latents: where noise comes from and where it goes.

All randomness comes from CPU generators of its own, one per clip and frame, so a frame is the same on every
device, and whatever else is drawn before or after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..frames.streams import generator as generator

Indices = Sequence[int] | None
"""A latent's ``batch_index``: which item of the batch each one was; None where that is 0, 1, 2, ..."""

Draw = Callable[[int, int], Tensor]
"""(frame i, count n) → n independent standard normal noises (n, *S) for that frame."""

NoiseModel = Callable[[Tensor, Draw, int], Iterator[Tensor]]
"""(frame 0 of shape S, draw, number of frames) → the frames of a clip in order, each of shape S."""


@dataclass(frozen=True)
class Carried:
    """Where earlier clips ended: by number of the clip its last frame (C, H, W), which was frame ``number``."""

    frames: Mapping[int, Tensor]
    number: int

    @classmethod
    def of(cls, samples: Tensor, indices: Indices = None, number: int | None = None) -> "Carried":
        """From noise laid out as in :func:`clip_noise`; ``number``, where it is known, for frames on axis 2."""
        if number is None and frames_axis(samples.shape) == 0:
            return cls({0: clip_frames(samples)[-1]}, len(samples) - 1 if indices is None else indices[-1])
        clips = range(len(samples)) if indices is None else indices
        last = samples.shape[2] - 1 if number is None else number
        return cls({clip: frames[:, -1] for clip, frames in zip(clips, samples, strict=True)}, last)

    @property
    def is_one_clip(self) -> bool:
        """Whether frames on a batch's axis can go on from it."""
        return [*self.frames] == [0]

    def last_of(self, clip: int, shape: Sequence[int]) -> Tensor:
        """The last frame of a clip, float32 on the CPU. ValueError where there is none, or not of ``shape``."""
        if clip not in self.frames:
            raise ValueError(
                f"Clip {clip} of the batch has no earlier noise to continue; previous holds clips "
                f"{sorted(self.frames)}. Give NoiseFrames a latent with as many clips."
            )
        frame = self.frames[clip]
        if frame.shape != torch.Size(shape):
            raise ValueError(
                f"The new frames have shape {tuple(shape)} (channels, height, width), but those in previous have "
                f"{tuple(frame.shape)}. Give NoiseFrames a latent of the same model and size."
            )
        return frame.to("cpu", torch.float32)


def plain_noise(shape: Sequence[int], source: torch.Generator, indices: Indices = None) -> Tensor:
    """What RandomNoise draws from ``source``: float32 of ``shape``, whose item k is draw ``indices[k]``."""
    if indices is None:
        return _normal(shape, source)
    drawn = [_normal((1, *shape[1:]), source) for _ in range(max(indices) + 1)]
    return torch.cat([drawn[index] for index in indices])


def frames_axis(shape: Sequence[int], carried: Carried | None = None) -> int:
    """The axis of a latent that holds a clip's frames: 0, its batch, or 2. ValueError for what is no clip's latent.

    (F, C, 1, H, W) is one clip on the batch's axis: ComfyUI's sampler makes that of a picture latent (F, C, H, W)
    for Qwen-Image and others whose latents have three dimensions. Only where several clips are ``carried`` each goes on
    by one frame.
    """
    if len(shape) == 4:
        return 0
    if len(shape) == 5:
        return 0 if shape[2] == 1 and (carried is None or carried.is_one_clip) else 2
    raise ValueError(
        f"Expected the latent of a clip, (frames, channels, height, width) or (batch, channels, frames, "
        f"height, width), but it has shape {tuple(shape)}. Use RandomNoise for other latents."
    )


def clip_noise(
    shape: Sequence[int],
    model: NoiseModel,
    seed: int,
    source: torch.Generator,
    indices: Indices = None,
    carried: Carried | None = None,
    axis: int | None = None,
) -> Tensor:
    """Noise by ``model`` for a latent of ``shape``, float32. ``axis``: of the frames, if not what :func:`frames_axis`
    says.

    - (F, C, H, W) or (F, C, 1, H, W), axis 0: one clip of F frames; frame k is frame ``indices[k]`` of the whole clip.
    - (B, C, F, H, W), axis 2: B clips of F frames; clip k is clip ``indices[k]`` of those the seed gives.

    First frames are drawn from ``source`` exactly as RandomNoise draws single frames, all others from streams
    of their own. Only the frames asked for are kept in memory. ValueError for any other number of dimensions.

    With ``carried`` the clips go on: the model starts from a clip's last frame, which stays out of the result, and
    streams are counted on from its number. ValueError for frames of ``indices`` that it does not come after.
    """
    axis = frames_axis(shape, carried) if axis is None else axis
    batch, channels, *_, height, width = shape
    if axis == 0:
        wanted = new_frames(batch, carried) if indices is None else indices
        first = plain_noise((channels, height, width), source)
        return torch.stack(_frames(model, first, seed, 0, wanted, carried)).reshape(-1, *shape[1:])
    first_frames = plain_noise((batch, channels, height, width), source, indices)
    numbers = range(batch) if indices is None else indices
    clips = [
        torch.stack(_frames(model, first, seed, number, new_frames(shape[2], carried), carried), dim=1)
        for number, first in zip(numbers, first_frames, strict=True)
    ]
    return torch.stack(clips)


def new_frames(count: int, carried: Carried | None) -> range:
    """The numbers, in the whole clip, of ``count`` frames that begin it or go on from where it was ``carried``."""
    first = 0 if carried is None else carried.number + 1
    return range(first, first + count)


def clip_frames(samples: Tensor, axis: int | None = None) -> Tensor:
    """The frames (F, C, H, W) of noise laid out as in :func:`clip_noise`; of several clips, the first."""
    if samples.ndim == 4:
        return samples
    return samples[:, :, 0] if (frames_axis(samples.shape) if axis is None else axis) == 0 else samples[0].movedim(1, 0)


def _frames(
    model: NoiseModel, first: Tensor, seed: int, clip: int, wanted: Sequence[int], carried: Carried | None
) -> list[Tensor]:
    start = 0
    if carried is not None:
        first, start = carried.last_of(clip, first.shape), carried.number
        if min(wanted) <= start:
            raise ValueError(
                f"latent_image's batch_index names frame {min(wanted)}, but previous ends at frame {start}. "
                f"batch_index counts frames of the whole clip: take frames from {start + 1} on with LatentFromBatch, "
                "or an empty latent that holds only the new frames."
            )

    def draw(frame: int, count: int) -> Tensor:
        return _normal((count, *first.shape), generator(seed, clip, start + frame))

    numbers = set(wanted)
    frames = model(first, draw, max(numbers) - start + 1)
    kept = {number: frame for number, frame in enumerate(frames, start) if number in numbers}
    return [kept[number] for number in wanted]


def _normal(shape: Sequence[int], source: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=source, dtype=torch.float32, device="cpu")
