"""Where the frames of a clip lie in one model call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import Tensor

from .families import Site


@dataclass(frozen=True)
class Clip:
    """``frame_indices``: the clip's frames that the call holds; ``tokens_per_frame``: of a frame inside the tokens."""

    frame_indices: tuple[int, ...]
    tokens_per_frame: int

    @classmethod
    def of(cls, latents: Tensor, branches: int, patch: Sequence[int], options: dict[str, Any]) -> Clip:
        """The clip in ``latents``: (branches · F, C, H, W), or (branches · B, C, F, H, W) in tokens of ``patch``."""
        if latents.ndim == 4:
            return cls(_frame_indices(len(latents) // branches, options), 1)
        *_, frames, height, width = latents.shape
        every, rows, columns = patch
        return cls(_frame_indices(frames, options)[::every], ceil(height / rows) * ceil(width / columns))

    def inside(self, site: Site, tokens: int) -> dict[str, int]:
        """``leading_tokens`` and ``tokens_per_frame`` among the ``tokens`` of q at ``site``, if they can be told."""
        leading = tokens - len(self.frame_indices) * self.tokens_per_frame
        if site.frames_in != "tokens" or leading < 0 or (leading > 0 and not site.text_first):
            return {}
        return {"leading_tokens": leading, "tokens_per_frame": self.tokens_per_frame}


def told_frames(options: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    """What a context window tells of the clip's frames in it.

    ComfyUI's window may have one more in front (its causal anchor); AnimateDiff-Evolved tells its own.
    """
    window = getattr(options.get("context_window"), "index_list", None) or ()
    anchor = getattr(options.get("context_window"), "causal_anchor_index", None)
    animatediff = options.get("ad_params", {}).get("sub_idxs") or ()
    for indices in (window, (anchor, *window), animatediff):
        if indices and None not in indices:
            yield tuple(indices)


def _frame_indices(frames: int, options: dict[str, Any]) -> tuple[int, ...]:
    """The clip's frame of every one in the call: a context window holds some frames of the clip only."""
    return next((indices for indices in told_frames(options) if len(indices) == frames), tuple(range(frames)))
