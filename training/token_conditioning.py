"""Tokens in front of a conditioning's text, one row for every frame of the clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.conds
import torch
from torch import Tensor

from .frame_tokens import join_tokens

if TYPE_CHECKING:
    from .ge_adapter import GEAdapter

_FRAMES = "coherence_frames"


def with_tokens(
    conditioning: list,
    adapter: GEAdapter,
    hidden: Tensor | None,
    shared_weight: float = 1.0,
    frame_weight: float = 1.0,
) -> list:
    """A conditioning like ``conditioning`` with [shared; per-frame; text] where its text was, entry by entry.

    ``hidden``: CLIP-vision hidden states (frames, N, width), of every frame of the clip or of one picture for all;
    None for shared tokens alone. Either kind of token is multiplied by its weight, and left out at 0 (Figs. 12 and 15:
    a token of zeros would still be attended to). A text may have a row for each frame, too. ComfyUI deals the rows to
    context windows along the batch, and evaluates positive and negative of different lengths one after the other.
    ValueError where widths or numbers of rows disagree, and, once sampling begins, where the latent has not as many
    frames as the tokens have rows.
    """
    own = None if hidden is None else adapter.tokens_of(hidden)
    weighted = [(adapter.shared_tokens[None], shared_weight)] + ([] if own is None else [(own, frame_weight)])
    parts = [tokens if weight == 1 else tokens * weight for tokens, weight in weighted if weight]
    rows = 1 if own is None or not frame_weight else len(own)
    result = []
    for text, settings in conditioning:
        if text is None or text.ndim != 3 or text.shape[-1] != adapter.text_width:
            shape = "none" if text is None else " × ".join(map(str, text.shape))
            raise ValueError(
                f"conditioning: expected text tokens of width {adapter.text_width}, as in training, got {shape}. Use "
                "the text encoder of the adapter's model."
            )
        if len({1, rows, len(text)}) > 2:
            raise ValueError(
                f"clip_vision_output has {rows} frames and the conditioning {len(text)} rows: expected equal numbers, "
                "or one of either. Encode every frame of the clip once."
            )
        joined = join_tokens([*(part.to(text) for part in parts), text])
        result.append([joined, _only_for(rows, settings) if rows > 1 else settings.copy()])
    return result


def frames_with_tokens(conditioning: list) -> int | None:
    """The number of frames for which a conditioning has per-frame tokens; None if all frames share theirs."""
    for _, settings in conditioning:
        if (frames := settings.get("model_conds", {}).get(_FRAMES)) is not None:
            return len(frames.cond)
    return None


def _only_for(frames: int, settings: dict) -> dict:
    """``settings`` that refuse a latent of another length: ComfyUI would repeat or cut the rows to fit."""
    return {**settings, "model_conds": {**settings.get("model_conds", {}), _FRAMES: _Frames(torch.arange(frames))}}


class _Frames(comfy.conds.CONDRegular):
    """Which frame each row of the conditioning is of. The model gets it, and ignores it."""

    def process_cond(self, batch_size: int, **kwargs) -> _Frames:
        if batch_size != len(self.cond):
            raise ValueError(
                f"GEAdapterTokens: the conditioning has tokens of {len(self.cond)} frames, the latent's batch has "
                f"{batch_size}. Give clip_vision_output as many frames as the latent has, or one picture for all."
            )
        return self._copy_with(self.cond)
