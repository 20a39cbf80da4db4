"""Where in the picture each word of a prompt applies: the columns of the attention maps that belong to its tokens.

From cross-attention, and from the text's columns of joint attention (Prompt-to-Prompt, arXiv 2208.01626; IE-Adapt,
suppl. 8.3 for the mask). Of each layer the mean over heads of the weight that a place gives to a word, the sum over the
word's tokens; then the mean over layers and steps, in the latent's size. No map is kept whole.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..techniques.entropy import CHUNK_BYTES, four_dimensional
from ..techniques.site import last
from ..techniques.technique import AttentionCall, require_whole_frames
from .recorder import Recorder
from .sites import NoSuchSiteError

Tokens = Sequence[int]
"""Of a word: the positions in its conditioning."""


@dataclass(eq=False)
class WordRecorder(Recorder):
    """Adds up what every layer that it is put on gives to each of ``words``.

    ``text_tokens``: of the conditioning; ``size``: the latent's height and width. Layers whose keys are not that text,
    such as image-to-video's for its picture, are left out.
    """

    words: Sequence[Tokens]
    text_tokens: int
    size: tuple[int, int]

    seen: set[str] = field(default_factory=set, init=False)
    _sums: dict[int, Tensor] = field(default_factory=dict, init=False)
    _counts: dict[int, int] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def maps(self) -> Tensor:
        """(frames, words, height, width), in float32 on the CPU. NoSuchSiteError where no layer had the text."""
        if not self._sums:
            raise NoSuchSiteError(
                "layers: the prompt's tokens cannot be located in any of these attention layers, so words cannot be "
                "mapped. Choose others, or '*' for all; remove nodes that add tokens to the prompt or "
                "replace attention."
            )
        return torch.stack([self._sums[frame] / self._counts[frame] for frame in sorted(self._sums)])

    def record(self, call: AttentionCall, out: Tensor) -> None:
        first, grid = first_of_text(call, self.text_tokens), call.grid
        if first is None or grid is None:
            return
        require_whole_frames(call)
        q, k, _ = call.per_head()
        in_rows = call.site.frames_in == "rows"
        leading, tokens = call.leading_tokens or 0, grid[0] * grid[1] * (1 if in_rows else call.frames)
        if q.shape[2] < leading + tokens or (in_rows and len(q) != call.frames):
            return
        mask = four_dimensional(call.mask)
        columns = [[first + token for token in word] for word in self.words]
        q, mask = q[:, :, leading : leading + tokens], _of_queries(mask, q.shape[2], leading, tokens)
        shares = word_shares(q, k, columns, call.scale, mask)  # (rows, tokens, words)
        of_frames = shares if in_rows else shares.mean(0).unflatten(0, (call.frames, -1))
        pictures = of_frames.transpose(1, 2).unflatten(2, grid)
        pictures = F.interpolate(pictures, self.size, mode="bilinear", antialias=True).cpu()
        with self._lock:
            self.seen.add(call.site.name)
            for frame, picture in zip(call.frame_indices, pictures, strict=True):
                self._sums[frame] = self._sums.get(frame, 0) + picture
                self._counts[frame] = self._counts.get(frame, 0) + 1


def first_of_text(call: AttentionCall, text_tokens: int) -> int | None:
    """The place of the prompt's first token among the keys; None where it is not there, or cannot be told."""
    if call.site.frames_in is None:
        return None
    if call.site.kind == "cross":
        return 0 if call.site.reads_text and call.k.shape[-2] == text_tokens else None
    if call.site.kind != "joint" or call.leading_tokens is None or call.tokens_per_frame is None:
        return None
    if call.leading_tokens == text_tokens:
        return 0
    if call.leading_tokens > text_tokens and call.site.leading is not last:  # the text is padded to whole tiles
        return 0
    return call.q.shape[-2] - text_tokens if call.leading_tokens == 0 and call.trailing_tokens == text_tokens else None


def word_shares(q: Tensor, k: Tensor, words: Sequence[Tokens], scale: float | None, mask: Tensor | None) -> Tensor:
    """Mean over heads of Σ_{j ∈ word} softmax(scale·q kᵀ + mask)_j: (rows, N_q, words) in float32.

    ``q``, ``k``: (rows, heads, N, channels); ``scale``: 1/√channels if None; ``mask``: (rows or 1, heads or 1, N_q or
    1, N_k), boolean (True = attend) or added to the scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chooses = torch.zeros(k.shape[2], len(words), device=q.device)
    for number, word in enumerate(words):
        chooses[list(word), number] = 1.0
    shares = torch.empty(len(q), q.shape[2], len(words), device=q.device)
    at_once = max(1, CHUNK_BYTES // (4 * q.shape[1] * k.shape[2]))
    for row, (q_row, k_row) in enumerate(zip(q, k, strict=True)):
        keys = k_row.float().transpose(-2, -1)
        masks = None if mask is None else mask[min(row, len(mask) - 1)]
        for start in range(0, q.shape[2], at_once):
            part = slice(start, start + at_once)
            scores = (q_row[:, part].float() * scale) @ keys
            if masks is not None:
                here = masks if masks.shape[-2] == 1 else masks[:, part]
                scores = scores.masked_fill(~here, -torch.inf) if here.dtype == torch.bool else scores + here
            shares[row, part] = (scores.softmax(dim=-1) @ chooses).mean(0)
    return shares


def _of_queries(mask: Tensor | None, queries: int, first: int, number: int) -> Tensor | None:
    """Of a mask over ``queries`` the rows of some of them."""
    return mask if mask is None or mask.shape[-2] != queries else mask[..., first : first + number, :]
