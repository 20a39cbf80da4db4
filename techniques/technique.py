"""What a technique is, and what it sees of an attention layer. :mod:`..attention.tap` brings the two together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .branches import Branch, rows_of
from .kept import KeptRuns, Momentum
from .pairs import Pairs

if TYPE_CHECKING:  # techniques know nothing of ComfyUI, whose modules a site is found by
    from .site import Site


class FurtherKeysError(ValueError):
    """A layer already has keys from other frames, but something here needs its own keys only."""


class MergedError(ValueError):
    """Frames have been merged, and what comes next needs them whole; or they cannot be merged here."""


class PartOfFrameError(ValueError):
    """Frames are needed whole, but a call holds parts of them, or several in one picture."""


class NoInputError(ValueError):
    """A layer's input cannot be seen."""


class Proceed(Protocol):
    """What comes next: other techniques, other packs' patches, ComfyUI's attention.

    ``branches``: those whose rows ``q``, ``k`` and ``v`` hold, where they are not all of the call's. ``merged``: the
    rows are no frames any more, or hold other tokens: as many rows for every branch, whatever they are. Techniques that
    come behind are refused, and so are other packs' replacements of the layer.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, branches: tuple[Branch, ...] = ..., merged: bool = ...
    ) -> Tensor: ...


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer, about to attend.

    ``q``, ``k``, ``v`` are rows × … × tokens × channels, one branch's rows after the other's.
    ``branches``: for each branch in this call the index of its conditioning and its uuid (:mod:`.branches`).
    ``frame_indices``: the clip's (latent) frames that the call holds, in order. ``site.frames_in`` says where: one
    to a row, or all in the tokens. Of q's tokens ``tokens_per_frame`` belong to each frame there, after
    ``leading_tokens`` and before ``trailing_tokens`` that belong to none (text, references, padding). All three are
    None where a row holds a frame and nothing else, or where it cannot be told.
    ``mask``: what the host adds to the scores, or True where a key is seen; ``scale``: their factor, 1/√c if None.
    ``heads_joined``: the output is rows × tokens × channels of all heads, whichever layout q has.
    ``grid``: height and width of a frame in tokens, where the host tells them.
    ``clip_numbers``: of these frames in the whole clip, where the run holds a part of it; None where ``frame_indices``
    tell them. ``clip_length``: of the run's clip; None where it is not told.
    ``whole_frames``: its pictures are the run's frames; no parts of them, as of a prompt for an area or of a tile, and
    no grids of several.
    ``memory``: where the clip comes in chunks (:mod:`..attention.chunks`) or in runs (:mod:`..attention.carrying`),
    what the technique kept here in those before, and keeps for those that follow; None where all frames of the clip,
    or of a context window, are in the call.
    ``input``: what q, k and v are projected from, normed, rows × tokens × channels; None where the host does not show
    it (:func:`seen_input`).
    ``pairs``: in an edit, which branches take from which.
    ``runs_ahead``: these frames are here before the clip's chunks, in which they come once more
    (:meth:`Technique.ahead`).
    ``further_keys``: how many more keys than queries the host has there, before any technique.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    site: Site
    branches: tuple[Branch, ...]
    frame_indices: tuple[int, ...]
    sigma: float
    mask: Tensor | None = None
    scale: float | None = None
    leading_tokens: int | None = None
    tokens_per_frame: int | None = None
    trailing_tokens: int = 0
    heads_joined: bool = True
    grid: tuple[int, int] | None = None
    memory: dict[str, Tensor] | None = None
    clip_numbers: tuple[int, ...] | None = None
    clip_length: int | None = None
    whole_frames: bool = True
    input: Tensor | None = None
    pairs: Pairs | None = None
    runs_ahead: bool = False
    further_keys: int = 0

    @property
    def frames(self) -> int:
        return len(self.frame_indices)

    def of_frame(self, x: Tensor) -> Tensor:
        """The tokens of its frame in each row of k or v, or of what is laid out as they are; a view."""
        if not self.leading_tokens and not self.trailing_tokens:
            return x
        return x[..., self.leading_tokens : x.shape[-2] - self.trailing_tokens, :]

    def with_frame(self, x: Tensor, frame: Tensor) -> Tensor:
        """``x`` with ``frame`` in place of :meth:`of_frame`; all other tokens keep their bits."""
        if not self.leading_tokens and not self.trailing_tokens:
            return frame
        end = x.shape[-2] - self.trailing_tokens
        return torch.cat([x[..., : self.leading_tokens, :], frame, x[..., end:, :]], dim=-2)

    @property
    def rows_per_branch(self) -> int:
        return len(self.q) // len(self.branches)

    def only(self, kept: Sequence[int]) -> AttentionCall:
        """The same with the rows of the branches at the positions ``kept`` alone."""
        q, k, v = (rows_of(x, len(self.branches), kept) for x in (self.q, self.k, self.v))
        mask = rows_of_mask(self.mask, len(self.q), len(self.branches), kept)
        shown = None if self.input is None else rows_of(self.input, len(self.branches), kept)
        return replace(self, q=q, k=k, v=v, mask=mask, input=shown, branches=tuple(self.branches[i] for i in kept))

    def per_head(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as (rows, heads, tokens, channels per head), whichever layout the host uses.

        Keys and values that several query heads share (grouped-query attention) are repeated for each. Where the rows
        of q are tiles of a frame (HyperTile), keys and values are shared out to them as ComfyUI's attention does.
        """
        q = _split_heads(self.q, self.q.shape[-1] // self.heads if self.q.ndim == 3 else self.q.shape[-1])
        k, v = (x if len(x) == len(q) else x.reshape(len(q), -1, x.shape[-1]) for x in (self.k, self.v))
        k, v = (_split_heads(x, q.shape[-1]) for x in (k, v))
        k, v = (x.repeat_interleave(self.heads // x.shape[1], dim=1) for x in (k, v))
        return q, k, v

    def output_of(self, values: Tensor) -> Tensor:
        """A mean of v, one for each query and laid out as v is, as the layer's output, as ``proceed`` returns it."""
        if values.ndim == 4:
            values = values.repeat_interleave(self.heads // values.shape[1], dim=1)
            return values.transpose(1, 2).flatten(2) if self.heads_joined else values
        repeats = self.q.shape[-1] // values.shape[-1]
        if repeats == 1:
            return values.contiguous()
        channels = self.q.shape[-1] // self.heads
        return values.unflatten(-1, (-1, channels)).repeat_interleave(repeats, dim=-2).flatten(-2)

    def per_head_output(self, out: Tensor) -> Tensor:
        """The layer's output, as ``proceed`` returns it, as (rows, heads, tokens, channels per head)."""
        return _split_heads(out, out.shape[-1] // self.heads if out.ndim == 3 else out.shape[-1])


@dataclass(frozen=True)
class FeaturesCall:
    """One block of features that has run: ``features``, rows × channels × height × width; of a residual block what it
    adds to its input. All else as in :class:`AttentionCall`."""

    features: Tensor
    site: Site
    branches: tuple[Branch, ...]
    frame_indices: tuple[int, ...]
    sigma: float
    memory: dict[str, Tensor] | None = None
    clip_numbers: tuple[int, ...] | None = None
    clip_length: int | None = None
    whole_frames: bool = True
    pairs: Pairs | None = None
    runs_ahead: bool = False

    def only(self, kept: Sequence[int]) -> FeaturesCall:
        """The same with the rows of the branches at the positions ``kept`` alone."""
        features = rows_of(self.features, len(self.branches), kept)
        return replace(self, features=features, branches=tuple(self.branches[i] for i in kept))


def seen_input(call: AttentionCall) -> Tensor:
    """The layer's input. NoInputError where it is not there."""
    if call.input is None or len(call.input) != len(call.q) or call.input.shape[-2] != call.q.shape[-2]:
        raise NoInputError(
            f"The input of attention layer {call.site.name} cannot be seen here: another node has replaced the code of "
            "its block, or its tokens. Remove that node, or leave the layer out of 'layers'."
        )
    return call.input


def require_whole_frames(call: AttentionCall) -> None:
    """PartOfFrameError where a place in the call's pictures is not that place in the frame."""
    if not call.whole_frames:
        raise PartOfFrameError(
            f"Attention layer {call.site.name} was given a part of the frame or a grid of frames, expected whole "
            "frames: a prompt is for an area (ConditioningSetArea, or ConditioningSetMask with 'mask bounds'), or "
            "another node draws tiles or grids. Use a prompt for the whole frame, or a mask with 'default', or remove "
            "that node."
        )


def require_told_keys(call: AttentionCall) -> None:
    """FurtherKeysError where a picture's place among the queries tells nothing of its place among the keys."""
    if call.site.kind == "joint" and (call.leading_tokens or call.trailing_tokens) and call.further_keys:
        raise FurtherKeysError(
            f"Attention layer {call.site.name} has {call.further_keys} more keys than its {call.q.shape[-2]} queries: "
            "another node keeps the keys of reference pictures from an earlier call (Flux KV Cache), so a frame's own "
            "cannot be told from them. Remove that node."
        )


def require_own_keys(call: AttentionCall) -> None:
    """FurtherKeysError where frames cannot be given further keys: those that have some would depend on the nodes'
    order, and tiles of a frame would each see a part of them."""
    place, queries, keys = call.site.name, call.q.shape[-2], call.k.shape[-2]
    if len(call.q) != len(call.k):
        raise FurtherKeysError(
            f"Attention layer {place} is cut into tiles by another node (HyperTile), so each tile would see only part "
            "of the keys. Remove it, or let frames attend to one frame's keys: CrossFrameAttention first or "
            "previous, STAMInflate's frame_attention first or self."
        )
    if call.grid is not None and queries < call.grid[0] * call.grid[1]:
        raise FurtherKeysError(
            f"Attention layer {place} has {queries} queries for {call.grid[0] * call.grid[1]} tokens: another node "
            "merges tokens (ToMe), so a frame's own keys cannot be told from others. Remove it, or let frames attend "
            "to one frame's keys: CrossFrameAttention first or previous, STAMInflate's frame_attention first or self."
        )
    if call.mask is not None:
        raise FurtherKeysError(
            f"Attention layer {place} has a mask over its keys (of the prompt's padding, or from another node), which "
            "does not cover other frames' keys. Use one frame's keys instead: CrossFrameAttention first or previous."
        )
    if queries != keys:
        raise FurtherKeysError(
            f"Attention layer {place} has {queries} queries and {keys} keys here: another node already adds keys from "
            "other frames, and only one can. Remove one of them (CrossFrameAttention first_and_previous, "
            "fine_coarse or all, STAMInflate, TuneAVideoInflate), give them different layers, or set STAMInflate's "
            "frame_attention to self."
        )


def rows_of_mask(mask: Tensor | None, rows: int, branches: int, kept: Sequence[int]) -> Tensor | None:
    """The mask of those rows, where it differs from row to row: (rows, [heads,] N_q, N_k)."""
    is_by_row = mask is not None and mask.ndim > 2 and len(mask) == rows
    return rows_of(mask, branches, kept) if mask is not None and is_by_row else mask


def _split_heads(x: Tensor, channels: int) -> Tensor:
    """(rows, tokens, heads · channels), or already (rows, heads, tokens, channels), to the latter."""
    return x if x.ndim == 4 else x.unflatten(-1, (-1, channels)).transpose(1, 2)


class Stage(IntEnum):
    """Where a technique stands among those on one model, the outermost first; within a stage the nodes' order holds."""

    OUTPUT = auto()
    """Works on what all others make of the layer."""
    KEYS = auto()
    """Makes other keys and values of a frame's, as many as before."""
    FURTHER_KEYS = auto()
    """Gives a frame more keys: after what is made of its own, whichever node came first."""
    COPIES = auto()
    """Perturbs copies of branches: before what perturbs all, as what a copy is made for counts."""
    MAPS = auto()
    """Perturbs or exchanges the map itself."""
    MERGE = auto()
    """Attends with other rows or tokens than the frames': after all that works on frames."""
    LOOK = auto()
    """Sees the map that the others made, and changes nothing."""


class Technique(ABC):
    """What can be put on the tap, with what holds where it says nothing else.

    What a technique may ask for beside q, k and v, and what that costs; one that does not ask pays nothing:

    - The layer's input (``needs_input``): the hook that tells the site hands it on. No time and no memory: the block
      holds it anyway. Only at layers whose module is given it (UNets, Cosmos' like), and not where another pack's code
      runs in the block's place.
    - Features (:meth:`transform`): a hook on each such block, and no compiled code for the length of the call, as that
      would not know the hook.
    - Other rows or tokens (``proceed(…, merged=True)``): no technique behind it takes them, so it is of the stage
      ``MERGE``, behind all that works on frames. Other packs' replacements of the layer are refused.
    - Frames ahead (:meth:`ahead`): only where a clip runs in chunks, one more model call of those frames, a chunk of
      that size. Whatever else is active must treat frames for themselves (``by_frame``).
    - The pairs of an edit (``takes_from_source``): the edit pairs its branches, and calls the model for source and
      target in step where they do not fit into one call.
    """

    stage: Stage = Stage.KEYS
    supports_chunks: bool = False
    """Treats every frame for itself, or keeps what it needs of earlier ones in the call's memory."""
    splits_copies: bool = False
    """Treats copies of a branch differently: up to its first layer they are computed once
    (:mod:`..attention.prefix`)."""
    by_frame: bool = False
    """Treats every frame for itself, so that some may run ahead of the others."""
    needs_input: bool = False
    """Sees the layer's input, and acts only where that is shown."""
    takes_from_source: bool = False
    """Acts in edits alone, by their pairs."""
    frames_per_batch: int = 0
    """Asks for chunks of that many frames; 0 for none."""
    previous: Momentum | None = None
    """What its memory holds when a run begins: what a run before kept."""
    kept: KeptRuns | None = None
    """Takes what its memory holds when a run has ended well; None where nothing is to be kept."""

    def begin(self) -> None:  # noqa: B027
        """A sampling run begins: what was kept of the one before is void."""

    def parts_at(self, names: frozenset[str], sigma: float) -> frozenset[str]:
        """Of its sites, those where copies may differ from their originals in a model call at ``sigma``."""
        return names if self.splits_copies else frozenset()

    @abstractmethod
    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        """The layer's output, shaped as ``proceed(call.q, call.k, call.v)`` returns it."""

    def transform(self, call: FeaturesCall) -> Tensor:
        """What takes the place of ``call.features``, at sites of features. Not abstract: only techniques that are put
        on such sites need it, and nothing calls it of others."""
        raise NotImplementedError

    def ahead(self, frame_indices: tuple[int, ...], sigma: float) -> tuple[int, ...]:
        """Of a call's frames, which comes in chunks, those that go through the model before the first of them."""
        return ()
