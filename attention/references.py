"""One reference picture for each frame of a clip, as picture editors take them (Flux Kontext, Qwen-Image-Edit ...).

A batch in a conditioning's ``reference_latents`` gives every frame its own, and ComfyUI cuts it with the frames' rows.
But it repeats or drops pictures where their number is another one, and says nothing where a model has no use for them.
So what :func:`with_references` puts into a conditioning asks to be let through at every model call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from comfy.conds import CONDConstant
from node_helpers import conditioning_set_values
from torch import Tensor, nn

_LATENTS, _METHOD = "ref_latents", "ref_latents_method"
"""What ComfyUI's models call the references of a model call, and how these are told apart."""
FRAMES = "coherence_reference_frames"
"""Beside them in a model call: how many frames have one."""
_EDITORS = "Flux Kontext, Flux.2, Qwen-Image-Edit or Krea 2"
_IGNORED = "FrameReferences: this model takes no reference pictures and would ignore them."
_CURE = f"Use a model that edits pictures, such as {_EDITORS}, or remove the node."


class ReferencesError(ValueError):
    """References that a model call has no use for, or not the right number of."""


class _OneAFrame(CONDConstant):
    """``cond``: the number of frames that have a reference."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> _OneAFrame:
        if batch_size != self.cond:
            raise ReferencesError(
                f"FrameReferences: {self.cond} reference pictures for {batch_size} frames in a model call, expected "
                "one for each frame. Give the latent's batch as many frames as there are pictures. Context windows "
                "hold a few frames only and do not work here: use frames_per_batch of TemporalMomentumAttention. For "
                "one picture for all frames use ReferenceLatent."
            )
        return self


class _Untaken(CONDConstant):
    """Stands where models that take references put them."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> _Untaken:
        raise ReferencesError(f"{_IGNORED} {_CURE}")


def with_references(conditioning: list, latents: Tensor) -> list:
    """A copy of ``conditioning`` in which every frame has one of ``latents``, beside the references it has already.

    ReferencesError where those are of another number of frames.
    """
    for _, extras in conditioning:
        there = extras.get("model_conds", {}).get(FRAMES)
        if there is not None and there.cond != len(latents):
            raise ReferencesError(
                f"FrameReferences: conditioning has references for {there.cond} frames already, and these are for "
                f"{len(latents)}. Give both the same number of pictures."
            )
    asking = {_LATENTS: _Untaken(None), FRAMES: _OneAFrame(len(latents))}
    conditioning = [
        [text, {**extras, "model_conds": {**extras.get("model_conds", {}), **asking}}] for text, extras in conditioning
    ]
    return conditioning_set_values(conditioning, {"reference_latents": [latents]}, append=True)


@contextmanager
def of_a_chunk(conds: Mapping[str, list[dict[str, Any]]], frames: int, length: int) -> Iterator[None]:
    """For its length, the ``conds`` of a run have the references of ``length`` of their ``frames`` alone: ComfyUI
    makes room for all that it finds there."""
    kept = [
        (cond, cond["reference_latents"]) for each in conds.values() for cond in each if "reference_latents" in cond
    ]
    for cond, references in kept:
        cond["reference_latents"] = [x[:length] if len(x) == frames else x for x in references]
    try:
        yield
    finally:
        for cond, references in kept:
            cond["reference_latents"] = references


def require_taken(network: nn.Module, x: Tensor, inputs: Mapping[str, Any]) -> None:
    """ReferencesError where ``network`` has no use for the references among the ``inputs`` of a model call on ``x``."""
    if FRAMES not in inputs:
        return
    ways = (getattr(network, name, None) for name in ("forward", "_forward"))
    if not any(_LATENTS in inspect.signature(way).parameters for way in ways if way is not None):
        raise ReferencesError(f"{_IGNORED} {_CURE}")
    if getattr(network, "default_ref_method", "") is None and inputs.get(_METHOD) is None:
        raise ReferencesError(
            f"{_IGNORED} It does so unless the conditioning says how references are told apart. Put Edit Model "
            "Reference Method (FluxKontextMultiReferenceLatentMethod) after FrameReferences, with 'index'."
        )
    usual = getattr(getattr(network, "params", network), "default_ref_method", None)  # Flux KV Cache sets it
    if (inputs.get(_METHOD) or usual) == "index_timestep_zero" and len(x) > 1 and _adds_to_the_time(network):
        raise ReferencesError(
            "FrameReferences: this model takes references at time 0 (index_timestep_zero) for a single picture only. "
            "Choose another method at Edit Model Reference Method, or remove that node."
        )
    for latents in inputs[_LATENTS]:
        if latents.ndim != x.ndim or latents.shape[1] != x.shape[1]:
            raise ReferencesError(
                f"FrameReferences: the references are {tuple(latents.shape)}, the model draws {tuple(x.shape)}, "
                "expected the same dimensions and channels. Encode them with this model's VAE."
            )


def _adds_to_the_time(network: nn.Module) -> bool:
    """ComfyUI's Flux adds a row of guidance or text for each picture, and then has two of time for each."""
    guided = getattr(getattr(network, "params", None), "guidance_embed", False)
    return guided or getattr(network, "vector_in", None) is not None
