"""One attention layer or block of features of a model, and where a picture or clip lies among its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from torch import nn

Kind = Literal["spatial", "temporal", "joint", "cross", "text", "sound", "reference", "features"]
"""Whose tokens meet: those of one frame; one place's in all frames; all of the clip's, or one frame's and its text's;
the clip's and those of a condition; only the text's among themselves; only the sound's; only the references'. Features
are no attention: they are what a convolutional or residual block makes."""

Leading = Callable[[int, int, int], int]
"""(tokens of q, tokens of the picture or clip in it, tokens of the text) → tokens before those of the picture; negative
if it cannot be told."""


def alone(tokens: int, picture: int, _text: int) -> int:
    """The picture, and nothing else."""
    return 0 if tokens == picture else -1


def first(_tokens: int, _picture: int, _text: int) -> int:
    """The picture begins the row; poses and references come after it."""
    return 0


def last(tokens: int, picture: int, _text: int) -> int:
    """The picture ends the row."""
    return tokens - picture


def after_text(_tokens: int, _picture: int, text: int) -> int:
    """Text, then the picture, then its references."""
    return text


def last_padded(multiple: int) -> Leading:
    """The picture ends the row, padded to a multiple of ``multiple`` tokens."""
    return lambda tokens, picture, _text: tokens - ceil(picture / multiple) * multiple


@dataclass(frozen=True)
class Site:
    """One attention, or one block of features, whose ``module`` gives them; a model counts these for themselves.

    ``order`` counts a model's sites in the order they run. ``module`` is the one whose forward attends; where it does
    so more than once, its sites share it, in the order of its calls, and further calls belong to the last.
    ``frames_in`` tells whether frames lie in the rows or in the tokens of q, if they are there at all; ``leading``,
    which tokens come before those of the picture or clip; None where a row holds nothing else. ``attends_by`` is the
    module's attribute that holds its attention, where that is not ComfyUI's own: it is replaced for the length of a
    call, so no two threads may share the module (AnimateDiff-Evolved's own rule too). ``replaced_in`` is the
    transformer block, and the name there, by which other packs replace the attention. ``needs``: what a run must be
    given for the attention to happen at all, such as ``sound``; empty where it always does. ``shows_input``: the
    module's first argument is the layer's input, normed, as it is projected. ``reads_text``: of a ``cross`` site,
    whether its keys are the prompt's tokens. ``within`` is the model's block that leads its features through
    ``module``, where that is no part of the model.
    """

    name: str
    order: int
    kind: Kind
    heads: int
    module: nn.Module = field(repr=False, compare=False)
    frames_in: Literal["rows", "tokens"] | None = field(default="rows", repr=False)
    leading: Leading | None = field(default=None, repr=False, compare=False)
    attends_by: str | None = field(default=None, repr=False)
    replaced_in: tuple[nn.Module, str] | None = field(default=None, repr=False, compare=False)
    needs: str = field(default="", repr=False)
    shows_input: bool = field(default=False, repr=False)
    reads_text: bool = field(default=True, repr=False)
    within: nn.Module | None = field(default=None, repr=False, compare=False)
