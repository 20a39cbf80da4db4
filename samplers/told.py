"""How a model call with more branches than ComfyUI's own guidance is shown to other packs.

They hook ComfyUI's calls at three places before the model: ControlNets, the ``model_function_wrapper`` and the patches
in transformer options. At each of them a positive branch is 0 and a negative one 1, in the order of
:func:`..techniques.branches.told_order`, as in any other call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..techniques.branches import branches_of, of_rows, rows_of, told_order, with_branches

Conds = list[dict[str, Any]]
"""A conditioning as ComfyUI's samplers have it: each entry is a branch of the model call."""
_ABSENT = object()


@contextmanager
def meanwhile(options: MutableMapping[str, Any], **values: Any) -> Iterator[None]:
    """``options`` with ``values``, None for without; as they were after that. No copy: other packs keep what they must
    remember from step to step in the run's own dictionary."""
    before = {name: options.get(name, _ABSENT) for name in values}
    try:
        for name, value in values.items():
            _put(options, name, _ABSENT if value is None else value)
        yield
    finally:
        for name, value in before.items():
            _put(options, name, value)


def _put(options: MutableMapping[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        options.pop(name, None)
    else:
        options[name] = value


def told(wrapper: Callable | None) -> Callable:
    """A ``model_function_wrapper`` whose calls are as other packs expect them, around their ``wrapper``."""

    def call(apply_model: Callable, args: dict[str, Any]) -> Tensor:
        options = args["c"]["transformer_options"]
        order = order_in(options)
        (x, timestep, c), options = in_told_order((args["input"], args["timestep"], args["c"]), options)
        if wrapper is None:
            out = apply_model(x, timestep, **c)
        else:
            told = {"input": x, "timestep": timestep, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
            out = wrapper(apply_model, {**args, **told})
        return of_branches(out, len(out), inverse(order))

    return call


def order_in(options: dict[str, Any]) -> list[int]:
    """The positions of a call's branches in the order in which others expect them."""
    return told_order(branches_of(options))


def of_branches(tree: Any, rows: int, order: list[int]) -> Any:
    """``tree`` (:func:`..techniques.branches.of_rows`) with its rows by branch in ``order``."""
    if order == list(range(len(order))):
        return tree
    return of_rows(tree, rows, lambda x: torch.cat([rows_of(x, len(order), [position]) for position in order]))


def inverse(order: list[int]) -> list[int]:
    return [order.index(position) for position in range(len(order))]


def in_told_order(inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``Shown``: the same, in order."""
    order, branches = order_in(options), branches_of(options)
    told = with_branches(options, [branches[position] for position in order])
    x, t, cond = inputs
    given = {name: value for name, value in cond.items() if name != "transformer_options"}
    x, t, given = of_branches((x, t, given), len(x), order)
    return (x, t, {**given, "transformer_options": told}), told
