"""How much memory a training step will take, measured before the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import comfy.model_management as management
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .loop import TrainingError

OPTIMISER_COPIES = 4  # a weight, its gradient, and AdamW's two moments


def kept_for_backward(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of one ``forward``, parameters left out: what its backward pass needs.

    Nothing is kept meanwhile. A weak reference tells apart what comes to lie in the same place.
    """
    kept: dict[int, tuple[StorageWeakRef, int]] = {}

    def pack(x: Tensor) -> None:
        if not x.is_leaf:
            storage = x.untyped_storage()
            reference = StorageWeakRef(storage)
            kept[reference.cdata] = reference, storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: torch.empty(0)):
        result = forward()
    del result
    return sum(size for _, size in kept.values())


def extrapolated(few: int, at_few: int, more: int, at_more: int, frames: int) -> int:
    """a·n + b·n² through the bytes at ``few`` and ``more`` frames, at ``frames``: attention among frames is square."""
    slope_few, slope_more = at_few / few, at_more / more
    square = max(0.0, (slope_more - slope_few) / (more - few))
    return int((slope_few - square * few) * frames + square * frames**2)


def needed_for(
    loss_of_first: Callable[[int], Tensor], frames: int, parameters: int, measured_at: tuple[int, int] = (2, 4)
) -> int:
    """Bytes that a step on ``frames`` frames takes beside the model, for the backward pass and the optimiser.

    ``loss_of_first``: a loss of so many frames; it is measured at two numbers of them.
    """
    few, more = (min(n, frames) for n in measured_at)
    kept = kept_for_backward(lambda: loss_of_first(few))
    if more > few:
        kept = extrapolated(few, kept, more, kept_for_backward(lambda: loss_of_first(more)), frames)
    return kept + OPTIMISER_COPIES * 4 * parameters


def needed_to_follow(loss_of: Callable[[], Tensor], text: Tensor) -> int:
    """Bytes that a step on a negative prompt takes beside the model; ``loss_of``: its loss, with a gradient to
    ``text``."""
    return kept_for_backward(loss_of) + OPTIMISER_COPIES * text.nbytes


def is_free(needed: int) -> bool:
    return needed <= management.get_free_memory(management.get_torch_device())


def require(needed: int, what: str, cures: Iterable[str]) -> None:
    """TrainingError with suggestions if ``what`` needs more bytes than are free."""
    if not is_free(needed):
        free = int(management.get_free_memory(management.get_torch_device()))
        raise TrainingError(
            f"{what} needs about {gibibytes(needed)} beside the model, but only {gibibytes(free)} is free. To make it "
            f"fit: {'; '.join(cures)}."
        )


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
