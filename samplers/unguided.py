"""Passes that measure or train a model: the plain prediction from one conditioning.

Guidance calls the model again or mixes predictions, and a cache skips calls, so a pass would measure or learn something
else. :class:`UnguidedGuider` disables ComfyUI's hooks for these, whichever node set them, and logs their names. It also
logs hooks that may change predictions but serve other purposes too; those stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor

GUIDANCE = (
    "sampler_cfg_function",
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)
"""Where nodes hook guidance into a model, beside wrappers around a prediction."""
CACHES = ("easycache", "lazycache")
"""Keys of wrappers that answer from the steps before: ComfyUI's."""
_AROUND_CALLS = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
_OURS = "coherence"


class UnguidedGuider(CFGGuider):
    """A CFGGuider for positive conditionings alone. ``asked_by``: the node, for the log."""

    def __init__(self, model: ModelPatcher, asked_by: str) -> None:
        super().__init__(model)
        _tell(model, asked_by)

    def outer_predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """ComfyUI's, without the wrappers of PREDICT_NOISE."""
        return self.predict_noise(x, timestep, _unguided(model_options or {}), seed)


def _unguided(model_options: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in model_options.items() if name not in GUIDANCE}
    transformer_options = options.get("transformer_options", {})
    if wrappers := transformer_options.get("wrappers"):
        kept = {kind: _without_caches(by_key) if kind in _AROUND_CALLS else by_key for kind, by_key in wrappers.items()}
        options["transformer_options"] = {**transformer_options, "wrappers": kept}
    return options


def _without_caches(by_key: Mapping[Any, list[Callable]]) -> dict[Any, list[Callable]]:
    return {key: wrappers for key, wrappers in by_key.items() if key not in CACHES}


def _tell(model: ModelPatcher, asked_by: str) -> None:
    options = model.model_options
    around = {kind: _wrappers(model, kind) for kind in (WrappersMP.PREDICT_NOISE, *_AROUND_CALLS)}
    left_out = [
        *(_name(each) for hook in GUIDANCE for each in _listed(options.get(hook))),
        *(_name(each, key) for key, each in around[WrappersMP.PREDICT_NOISE]),
        *(_name(each, key) for kind in _AROUND_CALLS for key, each in around[kind] if key in CACHES),
    ]
    kept = [
        *(_name(each) for each in _listed(options.get("model_function_wrapper"))),
        *(
            _name(each, key)
            for kind in _AROUND_CALLS
            for key, each in around[kind]
            if key not in CACHES and not str(key).startswith(_OURS)
        ),
    ]
    if left_out:
        logging.info("%s: guidance and caches are left out of this pass: %s", asked_by, _joined(left_out))
    if kept:
        logging.warning(
            "%s: these stay on the model and affect the result: %s. To avoid that, connect the model from before "
            "their nodes.",
            asked_by,
            _joined(kept),
        )


def _wrappers(model: ModelPatcher, kind: str) -> list[tuple[Any, Callable]]:
    """Those of ``kind``, by key: a node puts them on the model, or into its options."""
    places = (model.wrappers, model.model_options.get("transformer_options", {}).get("wrappers", {}))
    return [(key, each) for place in places for key, listed in place.get(kind, {}).items() for each in listed]


def _listed(value: Any) -> list[Callable]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _name(each: Any, key: Any = None) -> str:
    """The node of ours, ``key``, or the module and the name of a function."""
    if (node := getattr(getattr(each, "__self__", None), "asked_by", None)) is not None:
        return node
    if isinstance(key, str):
        return key
    named = each if hasattr(each, "__qualname__") else type(each)
    return f"{named.__module__}.{named.__qualname__.partition('.<locals>')[0]}"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
