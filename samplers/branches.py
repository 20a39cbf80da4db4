"""Further branches of a sampling step, evaluated in the step's own model call.

A guidance needs its conditionings evaluated once more with something changed inside the model. ComfyUI lets a context
handler see every ``calc_cond_batch`` of a step; :class:`StepBranches` is one, for the length of one step, in front of
the one that may be there. It appends copies (:class:`..techniques.branches.Copy`) to the conditionings that the guider
asks for, and keeps their outputs. So it works below every guider, below samplers that other packs replace, with context
windows, and however memory splits a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from comfy.hooks import EnumHookType
from torch import Tensor

from ..techniques.branches import Copy
from .controls import SeenControls, with_controls
from .told import Conds, in_told_order


class Variant(NamedTuple):
    """One of the guider's conditionings, as a copy in the ``role`` that its ``owner`` gives it, or as it is (None)."""

    side: Literal["positive", "negative"]
    role: Any = None
    owner: Any = None


Combination = Mapping[Variant, float]
"""Factors of branches' outputs. They add up to 1, or to 0: so predictions of noise and of the clean latent agree."""


def combined(factors: Combination, outputs: Mapping[Variant, Tensor]) -> Tensor:
    """Σ factor · output."""
    first, *others = factors.items()
    total = outputs[first[0]] * first[1]
    for branch, factor in others:
        total = total + outputs[branch] * factor
    return total


class StepBranches:
    """The ``wanted`` branches of one step.

    ``conds``: the guider's conditionings by side. ``positive``: what the guider gets for its positive conditioning;
    where neither this nor ``wanted`` has the conditioning as it is, that is not evaluated. ``handler``: the context
    handler that the step has. ``one_row``: the model takes one conditioning a call.
    ``outputs``: what came of the branches.
    """

    def __init__(
        self,
        wanted: Iterable[Variant],
        positive: Combination,
        conds: Mapping[str, Conds],
        handler: Any,
        one_row: bool = False,
    ) -> None:
        self.outputs: dict[Variant, Tensor] = {}
        self._wanted = list(dict.fromkeys([*positive, *wanted]))
        self._positive = positive
        self._sides = conds
        self._handler, self._one_row = handler, one_row

    @property
    def missing(self) -> set[Variant]:
        """The branches that no call of the step has evaluated."""
        return {branch for branch in self._wanted if branch not in self.outputs}

    def should_use_context(self, *_call: Any) -> bool:
        return True

    def execute(
        self, calc: Callable, model: Any, conds: list[Conds | None], x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        """The outputs of ``conds``, having kept those of the copies."""

        def evaluate(conds: list[Conds | None]) -> list[Tensor]:
            call = (model, conds, x, sigma, options)
            if self._handler is not None and self._handler.should_use_context(*call):
                return self._handler.execute(calc, *call)
            return calc(*call)

        found = {side: _place_of(theirs, conds) for side, theirs in self._sides.items() if theirs}
        places = {side: place for side, place in found.items() if place is not None}
        missing = [branch for branch in self._wanted if branch not in self.outputs and branch.side in places]
        if not missing:
            return evaluate(conds)
        controls = SeenControls(in_told_order)
        originals, at = [with_controls(each, controls) for each in conds], dict[Variant, int]()
        asked, alone = list(originals), dict[Variant, Conds]()
        for branch in missing:
            side, role, owner = branch
            place = places[side]
            if role is None:
                at[branch] = place
                continue
            copies = [{**each, "uuid": Copy(each["uuid"], place, owner, role)} for each in originals[place] or ()]
            if side == "positive" and Variant(side) not in self._wanted and place not in at.values():
                at[branch], asked[place] = place, copies
            elif self._one_row or any(map(_has_code, copies)) or _may_give_rows(options):
                alone[branch] = copies
            else:
                at[branch] = len(asked)
                asked.append(copies)
        outputs = evaluate(asked)
        self.outputs.update({branch: outputs[place] for branch, place in at.items()})
        self.outputs.update({branch: evaluate([copies])[0] for branch, copies in alone.items()})
        given = outputs[: len(conds)]
        if "positive" in places and not self.missing:
            given[places["positive"]] = combined(self._positive, self.outputs)
        return given


def _has_code(cond: dict[str, Any]) -> bool:
    """Whether a conditioning brings hooks that act in the model call, such as attention couple, and not weights alone.

    They know the calls that ComfyUI makes for it, where nothing else that has these hooks is beside it.
    """
    hooks = cond.get("hooks")
    return hooks is not None and any(hook.hook_type is not EnumHookType.Weight for hook in hooks.hooks)


def _may_give_rows(options: dict[str, Any]) -> bool:
    """Whether other packs' patches may give a positive further rows before an attention and take them out after it, as
    attention couple on a model does. They know calls that have one positive."""
    patches = options.get("transformer_options", {}).get("patches", {})
    return any(patches.get(f"{layer}_patch") and patches.get(f"{layer}_output_patch") for layer in ("attn1", "attn2"))


def _place_of(theirs: Conds, conds: list[Conds | None]) -> int | None:
    """Where ``theirs`` stands among ``conds``, or what another pack made of it: uuids are kept."""
    same = [place for place, each in enumerate(conds) if each is theirs]
    alike = [place for place, each in enumerate(conds) if each and _uuids(each) == _uuids(theirs)]
    return next(iter([*same, *alike]), None)


def _uuids(conds: Conds) -> set[Any]:
    return {each["uuid"] for each in conds}
