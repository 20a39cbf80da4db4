"""Inserts modules between a UNet's layers without changing the UNet: inflation from image to video.

An ``Inflation`` holds a module for each of some transformer layers, which sees the frames of the clip together and
adds to the features, and what is added to the weights W_q there. The modules live in a model of their own beside the
user's (ComfyUI's additional models, so it loads and offloads them); for the length of one call hooks on the
transformer blocks lead the features through them. So the order of nodes does not matter, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import comfy.model_management as management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..techniques.branches import branches_of
from .frames import frame_indices
from .hooks import heard, undone_after
from .keys import INFLATED_BLOCKS, INFLATED_FEATURES, INFLATED_PLACE, INSERTED
from .rows import in_groups, rows_told
from .sites import Site, list_sites, select_sites, sites_in_run, sites_of
from .uncompiled import uncompiled, uncompiled_if_unguarded
from .wrappers import put_wrappers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Position = Literal["before_cross", "after_cross", "after_feed_forward"]
"""Where in a transformer layer: before its cross-attention, after it, or after its feed-forward."""
QUERIES = ("attn1", "attn2")
"""The attentions whose W_q may be tuned."""
_WRAPPER = "coherence.inflation"
_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class InflationError(ValueError):
    """The model or the weights do not fit the modules to insert."""


@dataclass(frozen=True)
class TransformerLayer:
    """``place``: its attention sites' names up to the last dot, ``input.1``; ``block``: ComfyUI's module."""

    place: str
    block: nn.Module
    width: int
    heads: int

    def query(self, name: str) -> nn.Linear | None:
        """W_q of its ``attn1`` or ``attn2``, where it has one."""
        attention = getattr(self.block, name)
        return None if attention is None else attention.to_q


def transformer_layers(model: ModelPatcher, selector: str) -> list[TransformerLayer]:
    """The layers of ``model`` whose self-attention within a frame ``selector`` names, in order.

    InflationError for a model whose layers cannot be inflated; NoSuchSiteError and UnknownModelError as in
    :mod:`.sites`.
    """
    sites = _inflatable(sites_of(model))
    own = list_sites(model.get_model_object("diffusion_model"), motion_models=())
    if not sites or any(site.kind == "temporal" for site in own):
        across = any(site.kind == "temporal" or site.frames_in == "tokens" for site in own)
        raise InflationError(
            "Expected an image model with a UNet (SD1.5, SD2, SDXL), whose batch is the clip; this one "
            f"({base_of(model)}) {'already attends across frames' if across else 'has no UNet'}."
        )
    return [_layer(site) for site in select_sites(sites, selector, ["spatial"])]


def _inflatable(sites: Iterable[Site]) -> list[Site]:
    """Self-attention within a frame, in a UNet's transformer layers."""
    return [s for s in sites if s.kind == "spatial" and s.replaced_in is not None and s.name.endswith(".attn1")]


def _layer(site: Site) -> TransformerLayer:
    assert site.replaced_in
    block: Any = site.replaced_in[0]
    return TransformerLayer(site.name.rsplit(".", 1)[0], block, block.attn1.to_q.in_features, site.heads)


def base_of(model: ModelPatcher) -> str:
    """The class of a model, as ComfyUI names it: SD15, SDXL."""
    return type(model.model.model_config).__name__


def computing_dtype(model: ModelPatcher) -> torch.dtype:
    """What ``model`` computes in: modules of our own are kept in that. Its weights may be of a type that only stores
    (fp8), in which small numbers vanish."""
    dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()
    return dtype if dtype in _COMPUTED else torch.float32


class Inserted(nn.Module):
    """Modules by names with dots: ``input.1.stam``, ``input.1.attn1`` (what is added to W_q)."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(modules)
        self.inserted = nn.ModuleList(modules.values())

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        return zip(self.names, self.inserted, strict=True)


@dataclass(frozen=True, eq=False)
class Inflation:
    """``modules``: ``<place>.<name>`` adds to the features what it makes of them, (clips · F, tokens, width) and the
    frames' numbers; ``<place>.attn1`` and ``.attn2`` are linear and add to the queries. ``strength`` scales both.

    ``record`` is for whoever made it, to find again what it was made of.
    """

    name: str
    position: Position
    modules: Inserted
    strength: float
    record: Any
    network: str = ""
    """The class of the diffusion model."""

    def sites(self, sites: Sequence[Site]) -> list[Site]:
        """``sites`` of a model with this one's temporal attention among them, in the order they run."""
        inserted = {name.rsplit(".", 1)[0]: module for name, module in self.modules.items() if name.endswith(self.name)}
        after = "attn1" if self.position == "before_cross" else "attn2"
        number, there = count(), []
        for site in sites:
            there.append(replace(site, order=next(number)))
            place, name = site.name.rsplit(".", 1)
            if name == after and place in inserted:
                module: Any = inserted[place]
                block = site.replaced_in[0] if site.replaced_in else None
                ours = f"{place}.{self.name}", next(number)
                there.append(Site(*ours, "temporal", module.heads, module, frames_in="tokens", within=block))
        return there


def inflate(model: ModelPatcher, inflation: Inflation) -> ModelPatcher:
    """A clone of ``model`` with ``inflation``'s modules in it, which run after those that are in it already.

    InflationError where modules of that name are.
    """
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    there = inflations_of(options)
    if any(each.name == inflation.name for each in there):
        raise InflationError(
            f"The model is already inflated with {inflation.name} modules, expected a plain one. Connect the model "
            "from before the other inflation node."
        )
    options[INSERTED] = (*there, inflation)
    device, offload_device = management.get_torch_device(), management.unet_offload_device()
    patcher = comfy.model_patcher.CoreModelPatcher(inflation.modules, device, offload_device)
    clone.set_additional_models(beside(inflation), [patcher])
    wrappers: dict[str, Callable] = {WrappersMP.OUTER_SAMPLE: _around_run, WrappersMP.APPLY_MODEL: _around_model_call}
    put_wrappers(clone, _WRAPPER, wrappers)
    return clone


def beside(inflation: Inflation) -> str:
    """The key of its modules among the model's additional models."""
    return f"{_WRAPPER}.{inflation.name}"


def inflations_of(options: dict[str, Any]) -> tuple[Inflation, ...]:
    """Those of a model's, or a call's, transformer options."""
    return options.get(INSERTED, ())


class _Blocks:
    """The transformer layers of the diffusion models in a run, by place; found once."""

    def __init__(self) -> None:
        self._found: dict[nn.Module, dict[str, Any]] = {}

    def of(self, diffusion_model: nn.Module, inflations: Iterable[Inflation]) -> dict[str, Any]:
        if diffusion_model not in self._found:
            patched = {f"The node that inflates with {each.name}": each.network for each in inflations if each.network}
            sites = _inflatable(sites_in_run(diffusion_model, (), patched))
            self._found[diffusion_model] = {layer.place: layer.block for layer in map(_layer, sites)}
        return self._found[diffusion_model]


def _around_run(executor, noise, *args, **kwargs):
    """OUTER_SAMPLE: what is found of a model is found once a run."""
    model_options = executor.class_obj.model_options
    options = model_options["transformer_options"]
    options[INFLATED_BLOCKS] = _Blocks()
    try:
        with rows_told(options, noise), uncompiled_if_unguarded(model_options):
            return executor(noise, *args, **kwargs)
    finally:
        del options[INFLATED_BLOCKS]


def _around_model_call(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """APPLY_MODEL: leads the features through the modules for the length of one call."""
    options: dict[str, Any] = transformer_options or {}
    inputs = (x, t, c_concat, c_crossattn, control)
    return in_groups(partial(_call_of_frames, executor, options), inputs, kwargs, options)


def _call_of_frames(executor, given: dict[str, Any], inputs: tuple, kwargs: dict[str, Any]) -> Tensor:
    x, *_ = inputs
    options = {**given, "patches": {**given.get("patches", {})}}
    blocks = (options.get(INFLATED_BLOCKS) or _Blocks()).of(executor.class_obj.diffusion_model, inflations_of(options))
    frames = frame_indices(x.shape, len(branches_of(options)), options)
    with uncompiled(), undone_after(options) as stack:
        for place in {name.rsplit(".", 1)[0] for each in inflations_of(options) for name, _ in each.modules.items()}:
            note = heard(partial(_note, place), options)
            stack.callback(blocks[place].register_forward_pre_hook(note, with_kwargs=True).remove)
        for inflation in inflations_of(options):
            for hook in _lead_through(inflation, blocks, frames, options):
                stack.callback(hook.remove)
        return executor(*inputs, options, **kwargs)


def _note(place: str, _block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook: a block's patches are told where they are."""
    return args, {**kwargs, "transformer_options": {**kwargs.get("transformer_options", {}), INFLATED_PLACE: place}}


def _lead_through(
    inflation: Inflation, blocks: dict[str, Any], frames: Sequence[int], options: dict[str, Any]
) -> Iterator[Any]:
    """Yields the hooks that it takes; adds to the patches in ``options``, ComfyUI's own."""
    patches, temporal = options["patches"], dict[str, nn.Module]()
    for name, module in inflation.modules.items():
        place, what = name.rsplit(".", 1)
        if what in QUERIES:
            plus = heard(partial(_plus, module, inflation.strength), options)
            yield getattr(blocks[place], what).to_q.register_forward_hook(plus)
        else:
            temporal[place] = module

    def added(place: str, z: Tensor, options: dict[str, Any]) -> Tensor:
        return inflation.strength * temporal[place](z, frames, transformer_options=options)

    def catch(x: Tensor, options: dict[str, Any]) -> Tensor:
        options[INFLATED_FEATURES] = x
        return x

    def before_cross(x: Tensor, options: dict[str, Any]) -> Tensor:
        place = options.get(INFLATED_PLACE)
        return x + added(place, x, options) if place in temporal else x

    def after_cross(n: Tensor, options: dict[str, Any]) -> Tensor:
        place = options.get(INFLATED_PLACE)
        return n + added(place, options[INFLATED_FEATURES] + n, options) if place in temporal else n

    def after_feed_forward(place: str, _block: nn.Module, _args: tuple, kwargs: dict[str, Any], z: Tensor) -> Tensor:
        return z + added(place, z, kwargs["transformer_options"])

    if inflation.position == "after_feed_forward":
        for place in temporal:
            after = heard(partial(after_feed_forward, place), options)
            yield blocks[place].register_forward_hook(after, with_kwargs=True)
    elif inflation.position == "after_cross":
        patches["middle_patch"] = [*patches.get("middle_patch", ()), catch]
        patches["attn2_output_patch"] = [*patches.get("attn2_output_patch", ()), after_cross]
    else:
        patches["middle_patch"] = [*patches.get("middle_patch", ()), before_cross]


def _plus(linear: nn.Module, strength: float, _to_q: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: W_q x + strength · ΔW_q x."""
    return output + strength * linear(inputs[0])
