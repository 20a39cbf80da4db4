"""ControlNets that see a model call as in plain sampling, whatever else the call holds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from .told import Conds, inverse, of_branches, order_in

Shown = Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""What goes into a ControlNet, and the transformer options, as it shall see them."""
_OF_A_RUN = ("cond_hint", "multigpu_clones")


class SeenControl:
    """Replaces a ControlNet in conditionings and shows it what ``shown`` makes of a call.

    It is the ControlNet itself that is called and written to: packs put methods and settings on the instance. What it
    leaves in the transformer options stays there: reference ControlNets tell their model patches so that they are on.
    """

    def __init__(self, control: Any, shown: Shown) -> None:
        vars(self).update(_control=control, _shown=shown)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._control, name, value)

    @property  # type: ignore[misc]  # so that it passes for one
    def __class__(self) -> type:
        return type(self._control)

    def get_instance_for_device(self, device: Any) -> SeenControl:
        """ComfyUI's, where several GPUs take a part of the branches each."""
        return SeenControl(self._control.get_instance_for_device(device), self._shown)

    def get_control(self, x: Tensor, t: Tensor, cond: dict, branches: int, options: dict[str, Any]) -> Any:
        rows, order = len(x), order_in(options)
        shown, told = self._shown((x, t, cond), options)
        given = dict(told)
        out = self._control.get_control(*shown, branches, told)
        options.update({name: value for name, value in told.items() if value is not given.get(name)})
        return of_branches(out, rows, inverse(order))


class SeenControls:
    """The ControlNets of several conditionings. Those that are the ``same`` are one, so that they share a call."""

    def __init__(self, shown: Shown, same: Callable[[Any, Any], bool] = operator.is_) -> None:
        self._shown, self._same = shown, same
        self._seen: list[SeenControl] = []

    def of(self, control: Any) -> SeenControl:
        for seen in self._seen:
            if self._same(vars(seen)["_control"], control):
                return seen
        self._seen.append(SeenControl(control, self._shown))
        return self._seen[-1]


def with_controls(conds: Conds | None, controls: SeenControls) -> Conds | None:
    """``conds`` whose ControlNets are those of ``controls``."""
    if conds is None:
        return None
    return [
        {**each, "control": controls.of(each["control"])} if each.get("control") is not None else each for each in conds
    ]


def alike(one: Any, other: Any) -> bool:
    """The same settings. What a pack has put on an instance is its own."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, ControlBase):
        one, other = ({n: x for n, x in vars(each).items() if n not in _OF_A_RUN} for each in (one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(each, other[name]) for name, each in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return isinstance(one, int | float | str) and one == other
