"""The input for values that change from frame to frame: a text, or numbers from another pack's schedule node."""

from typing import Any

from comfy_api.latest import io

from ..frames.schedule import parse_schedule, schedule_text
from .node import InputError

Floats = io.Custom("FLOATS")
"""A list of numbers, as core's and other packs' keyframe nodes take; many others call the same FLOAT."""


def schedule_input(name: str, placeholder: str, tooltip: str, advanced: bool = False) -> io.MultiType.Input:
    """A text field that takes links of STRING, FLOAT and FLOATS; :func:`schedule_of` reads them all."""
    text = io.String.Input(name, default="", placeholder=placeholder)
    return io.MultiType.Input(text, [Floats, io.Float], tooltip=tooltip, advanced=advanced or None)


def schedule_of(name: str, value: Any, low: float, high: float) -> str:
    """What came in at the input ``name`` as frame:value pairs. InputError where it is no schedule, so that a slip in it
    shows at its node, not at the sampler."""
    try:
        text = schedule_text(value)
        parse_schedule(text, low, high)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from None
    return text
