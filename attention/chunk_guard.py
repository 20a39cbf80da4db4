"""Other packs' code in a clip that runs in chunks: it gives the same frames, or an error names it.

Most patches treat rows independently. Two kinds do not: patches that keep data from a call for later, such as guidance
that needs an attention map (a chunk gives only part of it), and patches that hold one row per frame of the clip and
ignore which frames a chunk holds.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from comfy.model_management import is_oom
from torch import Tensor, nn

from .chunks import Chunk, ChunkError

_OF_SIZES = ("size of tensor", "sizes of tensors", "shape '", "shape mismatch", "out of bounds")
_KNOWN = ("comfy.", "comfy_execution.", "torch.", "einops.", __name__.removesuffix("attention.chunk_guard"))
_DEPTH = 2
"""How far into containers, and objects, of a patch what it keeps is sought."""


class ToldFrames(dict):
    """Tells a chunk's patches which frames it holds; counts how often it was read."""

    looks = 0

    def __getitem__(self, name: str) -> Any:
        self.looks += 1
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(name, default)


class ChunkGuard:
    """Watches the patches of one model call, of a clip of ``frames`` frames in ``rows`` rows, that runs in chunks."""

    def __init__(self, options: dict[str, Any], frames: int, rows: int) -> None:
        self._patches = [patch for some in options.get("patches", {}).values() for patch in map(_code_of, some)]
        self._by_frame = {id(patch) for patch in self._patches if _has_rows(patch, {frames, rows})}
        for replacements in options.get("patches_replace", {}).values():
            self._patches += replacements.values()
        self._kept: dict[int, dict[str, Tensor]] = {}

    def watched(self, options: dict[str, Any]) -> dict[str, Any]:
        """A chunk's transformer options, with every patch watched."""
        told = ToldFrames(options["ad_params"])

        def watch(patch: Any) -> Any:
            if isinstance(patch, tuple):  # (the layers' class, the patch)
                return (*patch[:-1], watch(patch[-1]))
            return _Watched(patch, told, id(patch) in self._by_frame)

        patches = {name: [*map(watch, some)] for name, some in options.get("patches", {}).items()}
        replacements = {
            name: {place: watch(patch) for place, patch in some.items()}
            for name, some in options.get("patches_replace", {}).items()
        }
        return {**options, "ad_params": told, "patches": patches, "patches_replace": replacements}

    def after(self, chunk: Chunk) -> None:
        """ChunkError where a patch keeps of this chunk what it kept of the one before."""
        for patch in self._patches:
            before, now = self._kept.get(id(patch), {}), _held(patch)
            if any(
                path in before and before[path] is not tensor and tensor.ndim and not len(tensor) % len(chunk)
                for path, tensor in now.items()
            ):
                raise ChunkError(_needs_all(_name_of(patch), "it keeps data from one call for later"))
            self._kept[id(patch)] = now


@contextmanager
def sizes_explained(patch: Callable | None = None) -> Iterator[None]:
    """ChunkError in place of an error of sizes in ``patch``, or in code that is neither ComfyUI's nor ours."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if is_oom(error) or not any(words in str(error).lower() for words in _OF_SIZES):
            raise
        name = _name_of(patch) if patch is not None else _stranger_in(error)
        if name is None:
            raise
        raise ChunkError(_needs_all(name, f"it says: {error}")) from error


class _Watched:
    """A patch in a chunk; ``by_frame``: it has a row for each frame of the clip."""

    def __init__(self, patch: Callable, told: ToldFrames, by_frame: bool) -> None:
        self._patch, self._told, self._by_frame = patch, told, by_frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self._patch, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [x.clone() for x in args if isinstance(x, Tensor)] if self._by_frame else []
        looks = self._told.looks
        with sizes_explained(self._patch):
            out = self._patch(*args, **kwargs)
        if given and self._told.looks == looks:
            got = [x for x in (out if isinstance(out, tuple | list) else (out,)) if isinstance(x, Tensor)]
            if len(got) != len(given) or not all(map(torch.equal, got, given)):
                why = "it has one row per frame of the clip and ignores which frames it is given"
                raise ChunkError(_needs_all(_name_of(self._patch), f"{why} (ad_params)"))
        return out


def _needs_all(name: str, why: str) -> str:
    return (
        f"frames_per_batch lets a clip run in chunks of frames, but {name} needs all frames at once: {why}. Set "
        "frames_per_batch to 0, or remove the node that put it on the model."
    )


def _code_of(patch: Any) -> Any:
    return patch[-1] if isinstance(patch, tuple) else patch


def _name_of(patch: Any) -> str:
    while isinstance(patch, partial):
        patch = patch.func
    code = patch if hasattr(patch, "__qualname__") else type(patch)
    return f"{code.__qualname__.partition('.')[0]} ({code.__module__})"


def _stranger_in(error: BaseException) -> str | None:
    """The innermost code on the way to the error that is another pack's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f"{frame.f_globals.get('__name__', '')}." for frame in frames]
    strangers = [n for n, name in enumerate(names) if not name.startswith(_KNOWN)]
    return f"{frames[strangers[-1]].f_code.co_name} ({names[strangers[-1]][:-1]})" if strangers else None


def _has_rows(patch: Any, lengths: set[int]) -> bool:
    """Whether a patch has a table with as many rows as one of ``lengths``, not all of them equal."""
    tables = (x for x in _held(patch).values() if x.ndim > 1 and len(x) in lengths)
    return any(not torch.equal(x, x[:1].expand_as(x)) for x in tables)


def _held(patch: Any) -> dict[str, Tensor]:
    """The tensors that a patch keeps, by where."""
    return dict(_tensors_in("", _variables_of(patch), _DEPTH + 1))


def _variables_of(patch: Any) -> dict[str, Any]:
    """What the code of a patch has at hand beside its arguments: its own variables, and those of what it belongs to."""
    found: dict[str, Any] = {}
    while isinstance(patch, partial):
        found |= dict(enumerate(patch.args)) | patch.keywords  # type: ignore[arg-type]
        patch = patch.func
    owner = getattr(patch, "__self__", None if hasattr(patch, "__code__") else patch)
    function = patch if owner is not patch else type(patch).__call__
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(getattr(function, "__code__", None), "co_freevars", ()), cells, strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    return {**found, **getattr(owner, "__dict__", {})}


def _tensors_in(path: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif depth and not isinstance(value, type | nn.Module) and not type(value).__module__.startswith("comfy."):
        if isinstance(value, list | tuple):
            parts = dict(enumerate(value))
        elif isinstance(value, dict):
            parts = value
        else:
            parts = {} if callable(value) and hasattr(value, "__code__") else getattr(value, "__dict__", {})
        for name, part in [*parts.items()]:
            yield from _tensors_in(f"{path}.{name}", part, depth - 1)
