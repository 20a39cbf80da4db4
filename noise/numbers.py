"""Which frames of the whole clip a noise is for: told by whoever made it, as samplers pass on nothing but the tensor.

A noise that is moved to a device, or to another precision that keeps its bits, is found by its content. As frames may
be equal, such as all of a clip that stands still, what begins a clip is told, too, and the newest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from weakref import ref

import torch
from torch import Tensor


@dataclass(frozen=True)
class Told:
    """The clip's numbers of the frames here: ``indices`` of a batch's items or, where None, from ``start`` on."""

    start: int
    indices: tuple[int, ...] | None

    def numbers(self, frames: int) -> tuple[int, ...]:
        """Of frames on a batch's axis."""
        return tuple(range(self.start, self.start + frames)) if self.indices is None else self.indices


_told: dict[int, tuple[ref[Tensor], Told]] = {}
_lock = Lock()


def tell(noise: Tensor, start: int, indices: Sequence[int] | None) -> Tensor:
    """``noise``, whose frames are those that ``start`` and ``indices`` say, as long as it exists."""
    key = id(noise)

    def forget(_gone: ref[Tensor]) -> None:
        _told.pop(key, None)

    with _lock:
        _told[key] = ref(noise, forget), Told(start, None if indices is None else tuple(indices))
    return noise


def told_of(noise: Tensor) -> Told | None:
    """What was told of ``noise``, or of what it is a copy of. None where that is just that it begins a clip."""
    with _lock:
        entries = [*_told.values()][::-1]  # a copy: entries go whenever a noise does
    known = [(made, told) for there, told in entries if (made := there()) is not None]
    if noise.is_nested or not known:
        return None
    told = next((told for made, told in known if made is noise), None) or _of_copy(noise.detach().to("cpu"), known)
    return None if told == Told(0, None) else told


def _of_copy(noise: Tensor, known: Sequence[tuple[Tensor, Told]]) -> Told | None:
    alike = (told for made, told in known if made.shape == noise.shape and torch.equal(made.to(noise.dtype), noise))
    return next(alike, None)
