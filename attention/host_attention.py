"""The attention that techniques call: other packs' patches, then ComfyUI's attention."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..techniques.branches import Branch, with_branches
from ..techniques.technique import FurtherKeysError, MergedError, rows_of_mask


def outside_graphs() -> AbstractContextManager:
    """What is allocated inside may be kept: newer versions of ComfyUI record the allocations of each block of a model,
    and expect them to be gone when it ends."""
    pause = getattr(sys.modules.get("comfy.model_prefetch"), "pause_malloc_graph", None)  # imported where it is used
    return nullcontext() if pause is None else pause()


def preferred_attention(module: nn.Module) -> Callable[..., Tensor] | None:
    """The attention that a checkpoint asks for in ``module``. ComfyUI calls it only where no override is present."""
    for each in module.modules():
        function = getattr(getattr(each, "comfy_attention", None), "function", None)
        if function is not None:
            return function
    return None


@dataclass(frozen=True, eq=False)
class HostAttention:
    """The host's call of one attention: ``function(q, k, v, *args, **kwargs)`` for ``branches``, in ``rows`` rows.

    Techniques may hand on some of the branches alone. Then the mask and the transformer options, which lie at
    ``mask_at`` and ``options_at`` among the arguments (None: nowhere), become theirs. Nothing else here knows which
    rows are whose, so a technique may attend with others (``merged_by`` is the node's name), where ComfyUI attends.
    """

    function: Callable[..., Tensor]
    args: tuple
    kwargs: dict[str, Any]
    rows: int
    branches: tuple[Branch, ...]
    mask_at: int | str | None = None
    options_at: int | str | None = None
    own_keys_at: str | None = None
    """The site, where ``function`` needs as many keys as queries."""
    replaced_at: str | None = None
    """The site, where ``function`` is another pack's."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, branches: tuple[Branch, ...], merged_by: str = "") -> Tensor:
        if merged_by and self.replaced_at is not None:
            raise MergedError(
                f"{merged_by} merges frames at attention layer {self.replaced_at}, but another node replaces the "
                "attention there and may need them whole. Remove it, or leave the layer out of 'layers'."
            )
        if self.own_keys_at is not None and q.shape[-2] != k.shape[-2]:
            raise FurtherKeysError(
                f"Another node replaces the attention of {self.own_keys_at} and needs as many keys as queries there, "
                f"as PerturbedAttentionGuidance and SelfAttentionGuidance do, but there are {q.shape[-2]} queries and "
                f"{k.shape[-2]} keys. Remove it, leave the layer out of 'layers', or set CrossFrameAttention's keys "
                "to 'first' or 'previous', STAMInflate's frame_attention to 'first' or 'self'."
            )
        if branches == self.branches:
            return self.function(q, k, v, *self.args, **self.kwargs)
        args, kwargs = self._arguments_of(branches)
        return self.function(q, k, v, *args, **kwargs)

    def _arguments_of(self, branches: tuple[Branch, ...]) -> tuple[list, dict[str, Any]]:
        arguments: dict[Any, Any] = {**dict(enumerate(self.args)), **self.kwargs}
        if self.mask_at is not None:
            kept = [self.branches.index(branch) for branch in branches]
            mask = arguments.get(self.mask_at)
            arguments[self.mask_at] = rows_of_mask(mask, self.rows, len(self.branches), kept)
        if self.options_at is not None:
            arguments[self.options_at] = with_branches(arguments[self.options_at], branches)
        args = [arguments.pop(place) for place in range(len(self.args))]
        return args, arguments
