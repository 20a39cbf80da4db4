"""A LoRA on some of the steps: F = W0·x + strength · B·A·x between two percentages of sampling.

ComfyUI's LoraLoader merges a LoRA into the weights for a whole run, and its LoRA hooks belong to conditionings, follow
a schedule that only goes forward (an inversion walks back), and know no dynamic VRAM. Here forward hooks add B·A·x to a
layer's output during one model call. Only the noise level decides whether they are active. Weights, including quantised
ones, are not changed, and nothing is left behind. ComfyUI's own adapter computes B·A·x. A model under torch.compile
runs uncompiled on these steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ..attention.hooks import heard, undone_after
from ..attention.keys import ANY_ORDER, LORA_RUN, LORAS
from ..attention.steps import Steps, is_between, require_percents
from ..attention.uncompiled import uncompiled, uncompiled_if_unguarded
from ..attention.wrappers import put_wrappers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_WRAPPER = "coherence.lora_steps"


@dataclass(frozen=True, eq=False)
class StepLora:
    """A LoRA and when it acts. ``adapters``: by key of a weight in ComfyUI's model, ComfyUI's own LoRA adapter."""

    adapters: Mapping[str, LoRAAdapter]
    strength: float
    start_percent: float
    end_percent: float
    asked_by: str
    _moved: dict[torch.device, dict[str, LoRAAdapter]] = field(default_factory=dict)
    _applied: set[str] = field(default_factory=set)

    def is_active(self, sigma: float, model_sampling: Any) -> bool:
        return self.strength != 0 and is_between(sigma, self.start_percent, self.end_percent, model_sampling)

    def hooks(self, base_model: nn.Module, device: torch.device) -> Iterator[tuple[nn.Module, Callable]]:
        """The layers of ``base_model`` and what each of them gives instead."""
        if device not in self._moved:
            self._moved[device] = {key: _moved(each, device) for key, each in self.adapters.items()}
        for key, adapter in self._moved[device].items():
            layer = comfy.utils.get_attr(base_model, key.removesuffix(".weight"))
            yield layer, partial(_add, adapter, self.strength, key, self._applied)

    def require_applied(self) -> None:
        """ValueError where layers of a run took no notice of it: ComfyUI may compute a layer without calling it."""
        missed = [] if not self._moved else sorted(self.adapters.keys() - self._applied)
        if missed:
            raise ValueError(
                f"{self.asked_by}: {len(missed)} layers ran without the adapter or not at all, such as "
                f"{missed[0].removesuffix('.weight')}. ComfyUI may fuse layers whose weights are quantised: load the "
                "model in bf16 or fp16, or remove a node that skips layers."
            )

    def forget(self) -> None:
        """Frees what lies on devices."""
        self._moved.clear()
        self._applied.clear()


def with_lora(
    model: ModelPatcher,
    lora: Mapping[str, Tensor],
    strength: float,
    start_percent: float,
    end_percent: float,
    asked_by: str,
    trained_on: str = "",
) -> ModelPatcher:
    """A clone of ``model`` with ``lora``, named as in LoRA files, on the steps between the two percentages.
    ``trained_on``: the class of its model, for messages.

    ValueError if layers of the LoRA are missing in the model or have other shapes, or the percentages are not 0 ≤ start
    ≤ end ≤ 1.
    """
    require_percents(start_percent, end_percent, asked_by)
    adapters = _adapters_for(model, lora, asked_by, trained_on)
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    step_lora = StepLora(adapters, strength, start_percent, end_percent, asked_by)
    options[LORAS] = (*options.get(LORAS, ()), step_lora)
    wrappers: dict[str, Callable] = {WrappersMP.OUTER_SAMPLE: _around_run, WrappersMP.APPLY_MODEL: _around_model_call}
    put_wrappers(clone, _WRAPPER, wrappers)
    return clone


def _adapters_for(
    model: ModelPatcher, lora: Mapping[str, Tensor], asked_by: str, trained_on: str
) -> dict[str, LoRAAdapter]:
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    found = comfy.lora.load_lora(dict(lora), names, log_missing=False)
    # sorted: ComfyUI's order is another in every process, and a message names the first that does not fit
    adapters = {key: found[key] for key in sorted(found) if isinstance(found[key], LoRAAdapter)}
    loaded = set().union(*(each.loaded_keys for each in adapters.values())) if adapters else set()
    missing = sorted({name.partition(".")[0] for name in lora} - {name.partition(".")[0] for name in loaded})
    kind = type(model.model).__name__
    if missing or not adapters:
        total = len({name.partition(".")[0] for name in lora})
        if trained_on == kind:
            cure = f"the model that the adapter was trained on: this one is a {kind}, too, but has other layers"
        else:
            cure = f"a model of the class that the adapter was trained on{f', {trained_on}' if trained_on else ''}"
        raise ValueError(
            f"{asked_by}: expected a model with the adapter's {total} layers, but {kind} has "
            f"{total - len(missing) if adapters else 'none'} of them (missing: {', '.join(missing[:3])}). "
            f"Use {cure}."
        )
    for key, adapter in adapters.items():
        up, down = adapter.weights[:2]
        layer = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
        theirs, ours = (len(up), down.shape[1]), (layer.out_features, layer.in_features)
        if theirs != ours:
            raise ValueError(
                f"{asked_by}: {key.removesuffix('.weight')} is {ours[0]} × {ours[1]} in this model, the adapter is "
                f"for {theirs[0]} × {theirs[1]}. Use a model of the kind that it was trained on."
            )
    return adapters


def _moved(adapter: LoRAAdapter, device: torch.device) -> LoRAAdapter:
    up, down, *rest = adapter.weights
    return LoRAAdapter(set(), (up.to(device), down.to(device), *rest))


def _add(
    adapter: LoRAAdapter,
    strength: float,
    key: str,
    applied: set[str],
    _layer: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    applied.add(key)
    return output + strength * adapter.h(inputs[0], output)


def _around_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE: NoStepError where a run has no step for a LoRA; frees what lies on devices when it ends."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    loras = options.get(LORAS, ())
    sampling = guider.model_patcher.get_model_object("model_sampling")
    acting = [each for each in loras if each.strength]
    options[LORA_RUN] = steps = Steps(sigmas, acting, sampling, ANY_ORDER in options)
    try:
        with uncompiled_if_unguarded(guider.model_options):
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        for each in loras:
            each.require_applied()
    finally:
        del options[LORA_RUN]
        for each in loras:
            each.forget()
    steps.end()
    return result


def _around_model_call(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """APPLY_MODEL: puts the hooks on for one model call."""
    base_model, options = executor.class_obj, transformer_options or {}
    sigma = float(t.flatten()[0])
    if LORA_RUN in options:
        options[LORA_RUN].call(sigma)
    active = [each for each in options.get(LORAS, ()) if each.is_active(sigma, base_model.model_sampling)]
    with undone_after(options) as stack:
        if active:
            stack.enter_context(uncompiled())
        for each in active:
            for layer, hook in each.hooks(base_model, x.device):
                stack.callback(layer.register_forward_hook(heard(hook, options)).remove)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
