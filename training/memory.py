"""How much memory a training step will take, measured before the first one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OPTIMISER_COPIES = 4  # a weight, its gradient, and AdamW's two moments


def kept_for_backward(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of one ``forward``, parameters left out: what its backward pass needs."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not x.is_leaf:
            storage = x.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    del result
    return sum(kept.values())


def extrapolated(few: int, at_few: int, more: int, at_more: int, frames: int) -> int:
    """a·n + b·n² through the bytes at ``few`` and ``more`` frames, at ``frames``: attention among frames is square."""
    slope_few, slope_more = at_few / few, at_more / more
    square = max(0.0, (slope_more - slope_few) / (more - few))
    return int((slope_few - square * few) * frames + square * frames**2)


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
