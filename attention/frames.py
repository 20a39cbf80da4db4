"""Where the frames of a clip lie in one model call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from .families import Family, Site


@dataclass(frozen=True)
class Clip:
    """``frame_indices``: the clip's frames that the call holds; ``grid``: a frame's rows and columns of tokens, None
    where layers differ in it; ``text_tokens``: of the prompt, as the model is given it."""

    frame_indices: tuple[int, ...]
    grid: tuple[int, int] | None
    text_tokens: int

    @classmethod
    def of(
        cls, shape: Sequence[int], branches: int, family: Family, model: Any, options: dict[str, Any], text_tokens: int
    ) -> Clip:
        """The clip in latents of ``shape``: (branches · F, C, H, W), or (branches · B, C, F, H, W)."""
        indices = frame_indices(shape, branches, options, family.draws_pictures)
        if family.patch is None:
            return cls(indices, None, text_tokens)
        every, rows, columns = family.patch(model)
        return cls(indices[::every], (ceil(shape[-2] / rows), ceil(shape[-1] / columns)), text_tokens)

    def inside(self, site: Site, tokens: int) -> dict[str, Any]:
        """Where the clip lies among the ``tokens`` of q at ``site``, if that can be told: ``leading_tokens`` before it,
        ``tokens_per_frame`` of each frame there, ``trailing_tokens`` after it; a frame's ``grid``."""
        if site.frames_in is None or site.leading is None:
            return {}
        rows, columns = self.grid or (1, 1)
        per_frame = rows * columns
        picture = per_frame * (len(self.frame_indices) if site.frames_in == "tokens" else 1)
        leading = site.leading(tokens, picture, self.text_tokens)
        trailing = tokens - leading - picture
        if leading < 0 or trailing < 0:
            return {}
        grid = {} if self.grid is None else {"grid": self.grid}
        return {"leading_tokens": leading, "tokens_per_frame": per_frame, "trailing_tokens": trailing, **grid}


def told_frames(options: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    """The clip's frames in a context window, as ComfyUI or AnimateDiff-Evolved reports them.

    ComfyUI's window may have one more in front (its causal anchor); AnimateDiff-Evolved tells its own.
    """
    window = getattr(options.get("context_window"), "index_list", None) or ()
    anchor = getattr(options.get("context_window"), "causal_anchor_index", None)
    animatediff = options.get("ad_params", {}).get("sub_idxs") or ()
    for indices in (window, (anchor, *window), animatediff):
        if indices and None not in indices:
            yield tuple(indices)


def frame_indices(
    shape: Sequence[int], branches: int, options: dict[str, Any], draws_pictures: bool = True
) -> tuple[int, ...]:
    """The clip's frame of every one in the latents: a context window holds some frames of the clip only.

    A model that draws pictures may have latents of 5 dimensions with one frame each: then the batch is the clip, too.
    """
    by_row = len(shape) == 4 or (draws_pictures and shape[2] == 1)
    frames = shape[0] // branches if by_row else shape[2]
    return next((indices for indices in told_frames(options) if len(indices) == frames), tuple(range(frames)))
