"""What a family of models is: what tells it, where it attends, and how its tokens lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...techniques.site import Site

Walk = Callable[[Any, Iterator[int], Sequence[nn.Module] | None], Iterator[Site]]
"""(diffusion model, counter of the order, motion models that a run inserts or None if it has) → sites as they run."""


Layers = Callable[[Any], Iterable[nn.Module]]
Features = Callable[[Any], Iterable[Site]]


@dataclass(frozen=True)
class Family:
    """``owns`` tells its diffusion models; ``walk`` yields their sites; ``layers`` are the modules that the latents'
    rows go through, in the order they run. ``patch`` are the latent frames, rows and columns of one token; None if a
    model's layers differ in that. ``draws_pictures``: a batch of latents is a clip, a frame to a row. ``one_row``: it
    takes one row a call, so what needs two clips or conditionings in a call cannot be done. ``unfit``: further inputs
    with which frames do not lie where its sites say, and why. ``features``: its
    convolutional and residual blocks, in order."""

    name: str
    owns: Callable[[nn.Module], bool]
    walk: Walk
    layers: Layers
    patch: Callable[[Any], Sequence[int]] | None = None
    draws_pictures: bool = False
    one_row: bool = False
    unfit: Mapping[str, str] = field(default_factory=dict)
    features: Features = lambda _model: ()
