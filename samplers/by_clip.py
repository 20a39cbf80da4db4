"""Other packs' patches in a model call that holds several clips: they run for one clip at a time.

Some patches look for the rows of the positive and the negative, and take the first of each. So every patch at a layer,
or in place of a layer's attention, is called once per clip, with that clip's rows and branches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from math import prod
from operator import gt
from typing import Any

import torch
from torch import Tensor

from ..attention.keys import FURTHER_ROWS, WRITTEN_BY_CLIP
from ..attention.prefix import MODULE_HANDLERS
from ..techniques.branches import Branch, OfClip, branches_of, of_rows, rows_of, with_branches
from .own_state import OwnState, holders_of


class ByClip:
    """The patches of one run."""

    def __init__(self) -> None:
        self.state = OwnState()
        self._wrapped: dict[tuple[int, int], tuple[Any, Callable]] = {}
        self._together: dict[int, Any] = {}  # patches with which clips cannot be parted, and where these keep things

    def options(self, options: dict[str, Any], rows: int) -> dict[str, Any]:
        """Transformer options of a model call with ``rows`` rows, whose patches take one clip at a time."""
        if not clips_of(branches_of(options)):
            return options
        patches = {
            name: several if name == MODULE_HANDLERS else [self._by_clip(each, rows) for each in several]
            for name, several in options.get("patches", {}).items()
        }
        replaced = {
            name: {place: self._by_clip(each, rows) for place, each in theirs.items()}
            if name in ("attn1", "attn2")
            else theirs
            for name, theirs in options.get("patches_replace", {}).items()
        }
        return {**options, "patches": patches, "patches_replace": replaced}

    def _by_clip(self, patch: Callable, rows: int) -> Callable:
        """The same function every time, so that compiled code need not be made again."""
        key = id(patch), rows
        if key not in self._wrapped:

            def by_clip(*args: Any, **kwargs: Any) -> Any:
                return self._call(patch, rows, args, kwargs)

            compiles = "torch._dynamo" in sys.modules  # else importing it takes seconds
            self._wrapped[key] = patch, torch.compiler.disable(by_clip) if compiles else by_clip
        return self._wrapped[key][1]

    def _call(self, patch: Callable, rows: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        options = _options_in((args, kwargs))
        found = _rows_in((args, kwargs))
        clips = clips_of(branches_of(options)) if options else {}
        holders = list(holders_of(patch))
        together = any(id(each) in self._together for each in (patch, *holders))
        if options is None or not clips or together:
            return patch(*args, **kwargs)
        if len(clips) == 1:
            (clip,) = clips
            with self.state.of(clip, holders):
                return patch(*args, **kwargs)
        usual, sizes = options.get(FURTHER_ROWS, (0, ()))
        further = found == sum(sizes)
        if not further and found not in _layouts(rows, options):
            return patch(*args, **kwargs)
        branches = branches_of(options)
        usual = usual if further else found
        take = _split(found, sizes) if further else _parted(found, len(branches), clips)
        outputs = []
        for (clip, positions), part in zip(clips.items(), take, strict=True):
            own = _only(options, branches, clip, positions)
            told = dict(own)
            theirs = _narrowed((args, kwargs), part, told)
            with self.state.of(clip, holders):
                outputs.append(patch(*theirs[0], **theirs[1]))
            _remember(options, clip, {name: told[name] for name in told if told[name] is not own.get(name)})
        expected = [usual // len(branches) * len(positions) for positions in clips.values()]
        given = [_rows_in(out) for out in outputs]
        try:
            if given != expected and all(map(gt, given, expected)):
                merged = _merged(outputs, given, torch.cat, options)
                options[FURTHER_ROWS] = usual, given
                return merged
            return _merged(outputs, expected, _in_call_order(clips), options)
        except _OtherRowsError:  # by a layout of its own
            self._together.update({id(each): each for each in (patch, *holders)})
            self.state.forget(holders)
            return patch(*args, **kwargs)


class _OtherRowsError(Exception):
    pass


def clips_of(branches: Sequence[Branch]) -> dict[int, list[int]]:
    """The positions of each clip's branches; empty if the call does not say."""
    clips: dict[int, list[int]] = {}
    for position, (_, tag) in enumerate(branches):
        if not isinstance(tag, OfClip):
            return {}
        clips.setdefault(tag.clip, []).append(position)
    return clips


def _layouts(rows: int, options: dict[str, Any]) -> set[int]:
    """How many rows features may have: as the latents, those of a chunk's or window's frames, or one for each place in
    a picture (SVD's temporal layers)."""
    branches = len(branches_of(options))
    frames = options.get("ad_params", {}).get("sub_idxs") or ()
    return {rows, branches * len(frames), branches * prod(options.get("activations_shape", (0, 0))[-2:])}


def _is_options(value: Any) -> bool:
    return isinstance(value, dict) and "cond_or_uncond" in value


def _options_in(tree: Any) -> dict[str, Any] | None:
    """The transformer options among what a patch is given."""
    if _is_options(tree):
        return tree
    each = tree.values() if type(tree) is dict else tree if type(tree) in (tuple, list) else ()
    return next((found for found in map(_options_in, each) if found is not None), None)


def _rows_in(tree: Any) -> int:
    """Of the first tensor among what a patch is given."""
    if isinstance(tree, Tensor):
        return len(tree) if tree.ndim else 0
    if _is_options(tree):
        return 0
    each = tree.values() if type(tree) is dict else tree if type(tree) in (tuple, list) else ()
    return next((found for found in map(_rows_in, each) if found), 0)


def _only(options: dict[str, Any], branches: Sequence[Branch], clip: int, positions: list[int]) -> dict[str, Any]:
    return {
        **with_branches(options, [branches[position] for position in positions]),
        **options.get(WRITTEN_BY_CLIP, {}).get(clip, {}),
    }


def _remember(options: dict[str, Any], clip: int, written: dict[str, Any]) -> None:
    if written:
        options.setdefault(WRITTEN_BY_CLIP, {}).setdefault(clip, {}).update(written)


Part = Callable[[Any], Any]
"""Takes a clip's rows of what a patch is given."""


def _parted(rows: int, branches: int, clips: dict[int, list[int]]) -> list[Part]:
    """Each clip's part of a call's ``rows``."""
    return [
        partial(of_rows, rows=rows, change=partial(rows_of, branches=branches, kept=positions))
        for positions in clips.values()
    ]


def _split(rows: int, sizes: Sequence[int]) -> list[Part]:
    """Each clip's part of ``rows`` that follow one another by clip."""
    starts = accumulate(sizes, initial=0)
    return [
        partial(of_rows, rows=rows, change=partial(torch.narrow, dim=0, start=start, length=size))
        for start, size in zip(starts, sizes, strict=False)
    ]


def _narrowed(tree: Any, part: Part, options: dict[str, Any]) -> Any:
    if _is_options(tree):
        return options
    if type(tree) in (tuple, list):
        return type(tree)(_narrowed(each, part, options) for each in tree)
    if type(tree) is dict:
        return {name: _narrowed(each, part, options) for name, each in tree.items()}
    return part(tree)


def _in_call_order(clips: dict[int, list[int]]) -> Callable[[list[Tensor]], Tensor]:
    """How clips' tensors become one with the rows of a call."""
    places = [place for positions in clips.values() for place in positions]

    def join(outputs: list[Tensor]) -> Tensor:
        each = torch.cat(outputs).chunk(len(places))
        return torch.cat([each[places.index(place)] for place in range(len(places))])

    return join


def _merged(
    outputs: list[Any], sizes: list[int], join: Callable[[list[Tensor]], Tensor], options: dict[str, Any]
) -> Any:
    """What a patch returned for each clip, as one."""
    first = outputs[0]
    if all(out is first for out in outputs):
        return first
    if isinstance(first, Tensor):
        if [len(out) for out in outputs] != sizes:
            raise _OtherRowsError
        return join(outputs)
    if _is_options(first):
        return options
    if type(first) in (tuple, list):
        return type(first)(_merged(list(each), sizes, join, options) for each in zip(*outputs, strict=True))
    if type(first) is dict:
        return {name: _merged([out[name] for out in outputs], sizes, join, options) for name in first}
    return first
