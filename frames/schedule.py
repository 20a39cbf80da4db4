"""Values that change from frame to frame, written ``0:0.01, 8:0.1``: frame:value pairs, linear in between.

Schedule nodes of other packs give lists, a number for each frame from 0, or a text that shows one: ``[0.1, 0.2]``.
"""

from bisect import bisect_right
from collections.abc import Iterable

import torch
from torch import Tensor


def schedule_text(schedule: str | float | Iterable[float]) -> str:
    """``schedule`` as frame:value pairs: a number holds for every frame, the last one of a list for all that follow.

    A text that shows no list stays as it is. Nothing is checked: :func:`parse_schedule` is for that.
    """
    if isinstance(schedule, str):
        if not schedule.strip().startswith("["):
            return schedule
        values: Iterable[str | float] = filter(None, (piece.strip() for piece in schedule.strip(" \n[]").split(",")))
    else:
        values = map(float, schedule if isinstance(schedule, Iterable) else [schedule])
    return ", ".join(f"{frame}:{value}" for frame, value in enumerate(values))


def parse_schedule(text: str, low: float, high: float) -> list[tuple[int, float]]:
    """The (frame, value) pairs of ``text`` in rising order of frame; [] for an empty text.

    Frames count from 0, values lie in [``low``, ``high``]. ValueError names the piece that is wrong, and how
    to fix it.
    """
    pairs: dict[int, float] = {}
    for piece in filter(None, (piece.strip() for piece in text.replace("\n", ",").split(","))):
        frame, value = _parse_pair(piece)
        if not low <= value <= high:
            raise ValueError(f"Schedule piece {piece!r}: the value must lie between {low:g} and {high:g}.")
        if frame in pairs:
            raise ValueError(
                f"Schedule piece {piece!r}: frame {frame} is already {pairs[frame]:g}. Keep one of the two."
            )
        pairs[frame] = value
    return sorted(pairs.items())


def frame_schedule(text: str, default: float, frames: int, low: float, high: float) -> Tensor:
    """The value at each frame, float64 (``frames``,): linear between the pairs of ``text``, constant outside.

    An empty ``text`` is ``default`` throughout. Errors as for :func:`parse_schedule`. The value at a frame
    does not depend on ``frames``.
    """
    pairs = parse_schedule(text, low, high) or [(0, default)]
    return torch.tensor([_interpolate(pairs, frame) for frame in range(frames)], dtype=torch.float64, device="cpu")


def _parse_pair(piece: str) -> tuple[int, float]:
    frame_text, _, value_text = piece.partition(":")
    try:
        frame, value = int(frame_text), float(value_text)
    except ValueError:
        raise ValueError(
            f"Schedule piece {piece!r}: expected frame:value, such as '8:0.1'. Separate pieces with commas."
        ) from None
    if frame < 0:
        raise ValueError(f"Schedule piece {piece!r}: frames count from 0, so {frame} is not a frame. Use 0 or more.")
    return frame, value


def _interpolate(pairs: list[tuple[int, float]], frame: int) -> float:
    after = bisect_right(pairs, frame, key=lambda pair: pair[0])
    if after == 0:
        return pairs[0][1]
    if after == len(pairs):
        return pairs[-1][1]
    (frame0, value0), (frame1, value1) = pairs[after - 1], pairs[after]
    share = (frame - frame0) / (frame1 - frame0)
    return value0 * (1 - share) + value1 * share
