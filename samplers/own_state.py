"""Keeps what other packs' functions remember between calls separate for each of two clips.

A function that is called for two clips in turn would mix up their state, such as a running average or the previous
step. Where functions keep such things is known: in the dictionaries they are given, in variables of the function around
them, in attributes of their object. What a call changes there is taken out after it, and is there again when the same
clip comes back. Tensors that are changed in place cannot be told apart, unless they were made in such a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

Holder = dict | list | CellType
_ABSENT = object()
_WHOLE = "contents"
_NO_STATE = (ModelPatcher, nn.Module, Tensor, ModuleType, type)


class _Kept(NamedTuple):
    holder: Holder
    value: Any
    otherwise: Any


class OwnState:
    """What was kept for each clip."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[tuple[int, Any], _Kept]] = {}

    @contextmanager
    def of(self, clip: int, holders: Iterable[Holder]) -> Iterator[None]:
        """``holders`` hold what they did when ``clip`` was last here."""
        holders, kept = list(holders), self._kept.setdefault(clip, {})
        common = [_read(holder) for holder in holders]
        for holder, values in zip(holders, common, strict=True):
            for name in [name for place, name in kept if place == id(holder)]:
                was = kept[id(holder), name]
                if _same(values.get(name, _ABSENT), was.otherwise):
                    _write(holder, name, was.value)
                else:  # somebody else has written there, for all clips
                    del kept[id(holder), name]
        try:
            yield
        finally:
            for holder, values in zip(holders, common, strict=True):
                now = _read(holder)
                for name in {**values, **now}:
                    value, otherwise = now.get(name, _ABSENT), values.get(name, _ABSENT)
                    if not _same(value, otherwise):
                        kept[id(holder), name] = _Kept(holder, value, otherwise)
                        _write(holder, name, otherwise)
                    else:
                        kept.pop((id(holder), name), None)

    def forget(self, holders: Iterable[Holder]) -> None:
        """No clip has anything of its own in ``holders``."""
        places = {id(holder) for holder in holders}
        for kept in self._kept.values():
            for slot in [slot for slot in kept if slot[0] in places]:
                del kept[slot]


def holders_of(function: Any) -> Iterator[Holder]:
    """Where ``function`` may keep what it remembers."""
    yield from _holders_of(function, set())


def _holders_of(value: Any, seen: set[int]) -> Iterator[Holder]:
    if id(value) in seen or isinstance(value, _NO_STATE):
        return
    seen.add(id(value))
    if isinstance(value, partial):
        parts: Iterable[Any] = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        parts = (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        cells = [cell for cell in value.__closure__ or () if id(cell) not in seen]
        seen.update(map(id, cells))
        yield from cells
        parts = [cell.cell_contents for cell in cells if _read(cell)]
    else:
        if type(value) in (dict, list):
            yield value
        elif hasattr(value, "__dict__"):
            yield vars(value)
        return
    for part in parts:
        yield from _holders_of(part, seen)


def _read(holder: Holder) -> dict[Any, Any]:
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, list):
        return {_WHOLE: tuple(holder)}
    try:
        return {_WHOLE: holder.cell_contents}
    except ValueError:  # an empty cell
        return {}


def _write(holder: Holder, name: Any, value: Any) -> None:
    if isinstance(holder, dict):
        if value is _ABSENT:
            holder.pop(name, None)
        else:
            holder[name] = value
    elif isinstance(holder, list):
        holder[:] = value
    elif value is _ABSENT:
        del holder.cell_contents
    else:
        holder.cell_contents = value


def _same(one: Any, other: Any) -> bool:
    """The very same; numbers and texts that are equal, tuples of the same."""
    if type(one) is tuple and type(other) is tuple:
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (isinstance(one, int | float | str) and type(one) is type(other) and one == other)
