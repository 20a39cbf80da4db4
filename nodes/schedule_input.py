"""The input for values that change from frame to frame: a text, or numbers from another pack's schedule node."""

from comfy_api.latest import io

Floats = io.Custom("FLOATS")
"""A list of numbers, as core's and other packs' keyframe nodes take; many others call the same FLOAT."""


def schedule_input(name: str, placeholder: str, tooltip: str, advanced: bool = False) -> io.MultiType.Input:
    """A text field that takes links of STRING, FLOAT and FLOATS; ``noise.schedule.schedule_text`` reads them all."""
    text = io.String.Input(name, default="", placeholder=placeholder)
    return io.MultiType.Input(text, [Floats, io.Float], tooltip=tooltip, advanced=advanced or None)
