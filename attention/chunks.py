"""A clip in chunks of frames: one model call run as several, each with the next few frames of every branch.

Layers that treat rows independently give the same result either way. A technique that looks at earlier frames keeps
what the next chunk needs of them in its memory (:class:`..techniques.technique.AttentionCall`), one for each layer,
for the length of the model call. So a call needs the memory of one chunk, however long the clip is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..techniques.branches import of_rows
from .sites import Site

Memories = dict[tuple, dict[str, Tensor]]


class ChunkError(ValueError):
    """Something in a model needs all frames of a clip at once."""


@dataclass(frozen=True)
class Chunk:
    """``frame_indices``: the clip's frames in it, of ``clip_length``; ``memories``: what techniques keep, one for all
    chunks of a call; ``is_first``, ``is_last`` of these."""

    frame_indices: tuple[int, ...]
    clip_length: int
    memories: Memories
    is_first: bool
    is_last: bool
    ahead_for: str = ""
    """The node for which it runs before the others, which hold its frames once more."""

    def __len__(self) -> int:
        return len(self.frame_indices)

    def memory_of(self, *where: Any) -> dict[str, Tensor]:
        """What was kept for ``where``; empty in the first chunk."""
        return self.memories.setdefault(where, {})

    def told(self, options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the transformer options that tells other packs the frames, in AnimateDiff-Evolved's way: so each
        frame's own images of an IP-Adapter go to that frame."""
        told = {"full_length": self.clip_length, **options.get("ad_params", {}), "sub_idxs": [*self.frame_indices]}
        return {**options, "ad_params": told}


def require_frame_by_frame(sites: Iterable[Site], others: Sequence[str]) -> None:
    """ChunkError where the model has temporal attention, or ``others``, nodes that need all frames, are there."""
    temporal = [f"this model's temporal attention ({site.name})" for site in sites if site.kind == "temporal"]
    needing = [*others, *temporal]
    if needing:
        raise ChunkError(
            f"frames_per_batch lets a clip run in chunks of frames, but {needing[0]} needs all frames at once. Set "
            "frames_per_batch to 0, or remove that: chunks are for image models without motion modules. For long "
            "clips with AnimateDiff use its context windows."
        )


def require_may_run_ahead(others: Sequence[str], frames_of: str) -> None:
    """ChunkError where ``others``, nodes that need a frame's predecessors, are beside ``frames_of``, which lets some
    frames run ahead of the chunks."""
    if others:
        raise ChunkError(
            f"In chunks of frames {frames_of} lets some frames run ahead of the others, but {others[0]} lets frames "
            "attend to those before them. Set frames_per_batch to 0, or remove one of the two."
        )


def in_chunks(
    call: Callable[[Chunk, Any], Tensor],
    inputs: Any,
    rows: int,
    frame_indices: Sequence[int],
    length: int,
    ahead: Sequence[int] = (),
    ahead_for: str = "",
) -> Tensor:
    """The output of a model call (rows, …), from one ``call`` for every ``length`` frames.

    ``inputs``: tuples, lists and dicts of tensors; of those with ``rows`` rows, the frames of one branch after the
    other's, every chunk gets its own, and all of the others. ``frame_indices``: the clip's frames, one for each row of
    a branch. ``ahead``: those of them that are called before the others for the node ``ahead_for``, and come once more.
    """
    frames, clip_length, memories = len(frame_indices), max(frame_indices) + 1, Memories()
    if ahead:
        places = [place for place, index in enumerate(frame_indices) if index in ahead]
        first = Chunk(tuple(frame_indices[place] for place in places), clip_length, memories, False, False, ahead_for)
        call(first, of_rows(inputs, rows, lambda x: x.unflatten(0, (rows // frames, frames))[:, places].flatten(0, 1)))
    outputs = []
    for start, stop in spans(frames, length):
        chunk = Chunk(tuple(frame_indices[start:stop]), clip_length, memories, start == 0, stop == frames)
        outputs.append(call(chunk, of_frames(inputs, rows, frames, start, stop)).unflatten(0, (rows // frames, -1)))
    return torch.cat(outputs, dim=1).flatten(0, 1)


def spans(frames: int, length: int) -> Iterator[tuple[int, int]]:
    """The first frame of every chunk, and the one after its last."""
    return ((start, min(start + length, frames)) for start in range(0, frames, length))


def of_frames(inputs: Any, rows: int, frames: int, start: int, stop: int) -> Any:
    """``inputs`` with the frames from ``start`` to before ``stop`` alone; lists and dicts are new ones."""
    return of_rows(inputs, rows, lambda x: x.unflatten(0, (rows // frames, frames))[:, start:stop].flatten(0, 1))
