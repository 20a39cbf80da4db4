"""Classifier-free guidance of clips that are sampled together: one clip at a time, each with its own scale.

ComfyUI's guidance, and what other nodes hook into it, expects one clip: a scale for every frame, the similarity of
whole predictions, an average over the steps. So all of it runs once per clip. Only the sampler's own hooks, which read
the unguided result, see all clips, as the sampler does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.samplers import cfg_function
from torch import Tensor

from .own_state import OwnState, holders_of
from .told import Conds, meanwhile

_BEFORE, _AFTER, _INSTEAD = "sampler_pre_cfg_function", "sampler_post_cfg_function", "sampler_cfg_function"


@dataclass(frozen=True)
class Clip:
    """One clip in a step: its conditionings, what the model predicted from them, and how it is guided.

    Without a negative branch ``conds`` has None there and ``outputs`` zeros, as ComfyUI has it. ``adapted``: makes
    model options of the run's, for this clip.
    """

    conds: tuple[Conds, Conds | None]
    outputs: tuple[Tensor, Tensor]
    scale: float | Tensor
    x: Tensor
    timestep: Tensor
    adapted: Callable[[dict[str, Any]], dict[str, Any]] | None = None


class ClipGuidance:
    """The guidance of one run. ``options``: its model options, before the sampler has hooked in anything."""

    def __init__(self, state: OwnState, options: Mapping[str, Any]) -> None:
        self._state = state
        self._of_nodes = {name: tuple(options.get(name, ())) for name in (_BEFORE, _AFTER)}

    def __call__(self, model: Any, clips: list[Clip], options: dict[str, Any]) -> Tensor:
        """The guided predictions of ``clips``, one clip's rows after the other's."""
        for of_sampler in (False, True):
            for change in self._functions(options, _BEFORE, of_sampler):
                clips = self._changed(change, model, clips, options, of_sampler)
        with meanwhile(options, **{_AFTER: self._functions(options, _AFTER, False)}):
            guided = torch.cat([self._guided(model, number, clip, options) for number, clip in enumerate(clips)])
        for look in self._functions(options, _AFTER, True):
            guided = look({**_told(model, _joined(clips), options), "denoised": guided})
        return guided

    def _functions(self, options: Mapping[str, Any], name: str, of_sampler: bool) -> list[Callable]:
        of_nodes = self._of_nodes[name]
        return [each for each in options.get(name, ()) if any(each is node for node in of_nodes) != of_sampler]

    def _own(self, number: int, functions: list[Any], options: dict[str, Any]) -> AbstractContextManager[None]:
        kept_by = [holder for function in functions for holder in holders_of(function)]
        return self._state.of(number, [options, options["transformer_options"], *kept_by])

    def _changed(
        self, change: Callable, model: Any, clips: list[Clip], options: dict[str, Any], all_at_once: bool
    ) -> list[Clip]:
        """``clips`` with what ``change``, a function before guidance, makes of their predictions."""

        def changed(clip: Clip) -> tuple[Tensor, Tensor]:
            told = {"conds": [*clip.conds], "conds_out": [*clip.outputs]}
            positive, negative, *_ = change({**_told(model, clip, options), **told})
            return positive, negative

        if all_at_once:
            outputs = zip(
                *(each.split([len(clip.x) for clip in clips]) for each in changed(_joined(clips))), strict=True
            )
            return [replace(clip, outputs=each) for clip, each in zip(clips, outputs, strict=True)]
        after = []
        for number, clip in enumerate(clips):
            with self._own(number, [change], options):
                after.append(replace(clip, outputs=changed(clip)))
        return after

    def _guided(self, model: Any, number: int, clip: Clip, options: dict[str, Any]) -> Tensor:
        theirs = clip.adapted(dict(options)) if clip.adapted else options
        functions = [*theirs.get(_AFTER, ()), *([theirs[_INSTEAD]] if _INSTEAD in theirs else [])]
        positive, negative = clip.outputs
        with self._own(number, functions, options):
            return cfg_function(
                model,
                positive,
                negative,
                clip.scale,
                clip.x,
                clip.timestep,
                model_options=theirs,
                cond=clip.conds[0],
                uncond=clip.conds[1],
            )


def _told(model: Any, clip: Clip, options: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI tells functions before and after guidance, but for the results."""
    return {
        "cond": clip.conds[0],
        "uncond": clip.conds[1],
        "cond_denoised": clip.outputs[0],
        "uncond_denoised": clip.outputs[1],
        "cond_scale": clip.scale,
        "timestep": clip.timestep,
        "sigma": clip.timestep,
        "input": clip.x,
        "model": model,
        "model_options": options,
    }


def _joined(clips: list[Clip]) -> Clip:
    """All of ``clips`` as one, told the conditionings of the last."""
    scales = [clip.scale for clip in clips]
    rows = [_by_row(clip) for clip in clips]
    return replace(
        clips[-1],
        outputs=(torch.cat([clip.outputs[0] for clip in clips]), torch.cat([clip.outputs[1] for clip in clips])),
        scale=scales[0] if all(isinstance(s, int | float) and s == scales[0] for s in scales) else torch.cat(rows),
        x=torch.cat([clip.x for clip in clips]),
        timestep=torch.cat([clip.timestep for clip in clips]),
    )


def _by_row(clip: Clip) -> Tensor:
    scale = torch.as_tensor(clip.scale).to(clip.x)
    return scale.expand(len(clip.x), *[1] * (clip.x.ndim - 1)) if scale.ndim == 0 else scale
