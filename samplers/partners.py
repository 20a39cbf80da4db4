"""Which conditionings of an edit's source and target belong together: those for the same area of the frame.

Where one side has an area, a conditioning for it is added at the end of the other side, if none there has that area. So
the place in a list tells nothing of the place in the frame.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from comfy.samplers import apply_empty_x_to_equal_area, create_cond_with_same_area_if_none
from torch import Tensor

from ..techniques.pairs import UNPAIRED, UnpairedBranchError
from .told import Conds

Cond = dict[str, Any]


def complete_areas(one: Conds, other: Conds) -> None:
    """Adds to each side, in place, what it lacks of the other's areas, as ComfyUI does: its own conditioning of the
    smallest area around, cut out, here with its own ControlNet. The other's, and its boxes, stay there."""
    for there, conds in (([*other], one), ([*one], other)):
        for each in there:
            known = [*conds]
            told = {name: value for name, value in each.items() if name not in ("control", "gligen")}
            create_cond_with_same_area_if_none(conds, told)
            for added in conds[len(known) :]:
                own = next(some for some in known if some["model_conds"] == added["model_conds"])
                added |= {"control": own["control"]} if "control" in own else {}


def made_ready(
    prepare: Callable[[dict[str, Conds]], dict[str, Conds]], positive: Conds, negative: Conds
) -> tuple[Conds, Conds]:
    """The conditionings of one clip after ComfyUI's ``process_conds``, as ``prepare``.

    It hands ControlNets that ask for it, and GLIGEN's boxes, from a list named positive to all others, and fails where
    a negative is for areas alone: so that is done here.
    """
    for name, conds in (("positive", positive), ("negative", negative)):
        for entry in conds:
            entry.setdefault("prompt_type", name)
    positive, negative = prepare({"guided": positive, "unguided": negative}).values()
    if any("area" not in entry for entry in negative):
        asked = [entry for entry in positive if entry.get("control_apply_to_uncond")]
        for name, given in (("control", asked), ("gligen", positive)):
            apply_empty_x_to_equal_area(given, negative, name, operator.getitem)
    return positive, negative


def in_order(conds: Conds) -> Conds:
    """``conds`` by area, in the order in which calls that go in step meet; those of one area in their own."""
    return sorted(conds, key=_area)


def acting(conds: Conds, sigma: Tensor) -> Conds:
    """Of ``conds`` those whose step range holds ``sigma``, compared as ComfyUI does, in its precision."""
    return [each for each in conds if each.get("timestep_end", sigma) <= sigma <= each.get("timestep_start", sigma)]


def partners(sources: Conds, targets: Conds, names: tuple[str, str]) -> list[tuple[Cond, Cond | None]]:
    """Each of ``targets``, and the one of ``sources`` for the same area that it takes from; of several, entry by entry.

    ``names``: of both. A negative that takes from a positive has the first there, rather one without a mask; None where
    that area is the negative's alone.

    Raises:
        UnpairedBranchError: there is none for that area.
        ValueError: there are several, and not as many.
    """
    source, target = names
    crossed = target.endswith("negative") and not source.endswith("negative")
    there = _by_area(sources)
    pairs: list[tuple[Cond, Cond | None]] = []
    for area, some in _by_area(targets).items():
        donors: list[Cond | None] = [*there[area]]
        if len(donors) != len(some) and crossed:
            donors = [min(there[area], key=lambda each: "mask" in each, default=None)]
        if not donors:
            raise UnpairedBranchError(UNPAIRED)
        if len(donors) not in (1, len(some)):
            raise ValueError(
                f"{source} combines {len(donors)} conditionings and {target} {len(some)} for the same part of the "
                "frame: it is not clear which belong together. Combine the same number in each, or give the source one "
                "alone."
            )
        pairs += zip(some, donors if len(donors) == len(some) else donors * len(some), strict=True)
    return pairs


def _by_area(conds: Conds) -> defaultdict[tuple, Conds]:
    found: defaultdict[tuple, Conds] = defaultdict(list)
    for each in conds:
        found[_area(each)].append(each)
    return found


def _area(cond: Cond) -> tuple:
    return tuple(cond.get("area") or ())
