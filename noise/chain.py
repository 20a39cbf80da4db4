"""Clips that are Gaussian Markov chains, on a line or on a ring, also through key frames: which frames are made how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from .bridge import bridged, ring_correlations
from .streams import Draw, NoiseModel


@dataclass(frozen=True)
class Chain:
    """The law of a clip in which a frame depends on its neighbours alone.

    ``onward(k)`` makes frames freely, from frame k of the whole clip as its frame 0. ``correlations(n)`` holds ρ of
    frames i − 1 and i for every i of 0 to n − 1; that of 0 is of the last frame and the first, for a ``loop``.
    """

    onward: Callable[[int], NoiseModel]
    correlations: Callable[[int], Sequence[float]]
    loop: bool = False

    def model(self, start: int = 0, keys: Mapping[int, Tensor] | None = None, *, goes_on: bool = False) -> NoiseModel:
        """The frames from ``start`` on, with those of ``keys`` unchanged; all numbers are of the whole clip.

        ``goes_on``: frame ``start`` is given as well, where an earlier clip ended. A loop starts at 0, and the number
        of frames that its model is asked for is its length.
        """
        keys = keys or {}
        if not keys and not self.loop:
            return self.onward(start)

        def model(first: Tensor, draw: Draw, frames: int) -> Iterator[Tensor]:
            given = {number - start: frame for number, frame in keys.items()}
            if goes_on or not given:
                given[0] = first

            def fresh(index: int) -> Tensor:
                return draw(index, 1)[0] if index else first

            if self.loop and frames > 2:  # two frames are neighbours once
                of_first, *others = self.correlations(frames)
                yield from bridged(given, ring_correlations([*others, of_first]), fresh, loop=True)
                return
            last = max(given)
            correlations = self.correlations(start + last + 1)[start + 1 :]
            yield from islice(bridged(given, correlations, fresh), frames)
            if frames <= last:
                return
            following = self.onward(start + last)(
                given[last], lambda index, number: draw(last + index, number), frames - last
            )
            yield from islice(following, 1, None)

        return model


@dataclass(frozen=True)
class KeyFrames:
    """Frames (C, H, W) that a clip passes through, and their ``numbers`` in it: below 0 they count from its end."""

    numbers: Sequence[int]
    frames: Sequence[Tensor]

    @property
    def count_from_the_end(self) -> bool:
        return min(self.numbers) < 0

    def of(self, shape: Sequence[int], clip: range, *, whole: bool) -> dict[int, Tensor]:
        """By number, for frames ``clip`` of ``shape``, which are the clip to its end if it is ``whole``.

        ValueError for numbers outside, for two of one frame, and for frames of another shape.
        """
        keys: dict[int, Tensor] = {}
        for number, frame in zip(self.numbers, self.frames, strict=True):
            if tuple(frame.shape) != tuple(shape):
                raise ValueError(
                    f"keyframes have shape {tuple(frame.shape)} (channels, height, width), but the clip's frames have "
                    f"{tuple(shape)}. Make them with the same model and size."
                )
            index = number if number >= 0 else clip.stop + number
            if index < clip.start or (whole and index >= clip.stop):
                earlier = " Earlier ones belong to the clip in previous." if clip.start else ""
                raise ValueError(
                    f"frames names {number}, but this clip holds frames {clip.start} to {clip.stop - 1}.{earlier} "
                    "Change frames, or the clip's length."
                )
            if index in keys:
                raise ValueError(
                    f"frames names frame {index} twice in {', '.join(map(str, self.numbers))}. Keep one of the two."
                )
            keys[index] = frame
        return keys
