"""UNets: SD1.5, SD2, SDXL, SVD, and AnimateDiff-Evolved's motion modules in the former."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Literal

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from torch import nn

from ...techniques.site import Site, alone
from .family import Family


def _walk_unet(unet: Any, order: Iterator[int], motion_models: Sequence[nn.Module] | None) -> Iterator[Site]:
    """``input.4.attn1``, ``middle.0.attn1``, ``output.3.attn2``; ``input.7.1.attn1`` where a block holds several.

    SVD's temporal layers: ``input.4.time.attn1``; those of a motion model: ``input.4.motion.0``.
    """
    middle = [] if unet.middle_block is None else [unet.middle_block]
    for part, motion_part, blocks in (
        ("input", "down_blocks", unet.input_blocks),
        ("middle", "mid_block", middle),
        ("output", "up_blocks", unet.output_blocks),
    ):
        motion = _motion_of_blocks(blocks, motion_part, motion_models)
        for number, (block, motion_modules) in enumerate(zip(blocks, motion, strict=True)):
            layers = list(_transformer_layers(block))
            for depth, (layer, time_layer) in enumerate(layers):
                place = f"{part}.{number}" if len(layers) == 1 else f"{part}.{number}.{depth}"
                yield from _layer_sites(place, layer, order, "spatial")
                if time_layer is not None:
                    yield from _layer_sites(f"{place}.time", time_layer, order, "temporal")
            for index, attention in enumerate(_motion_attention(motion_modules)):
                yield Site(
                    f"{part}.{number}.motion.{index}",
                    next(order),
                    "cross" if attention.is_cross_attention else "temporal",
                    attention.heads,
                    attention,
                    frames_in="tokens",
                    leading=alone,
                    attends_by="actual_attention",
                )


def _unet_layers(unet: Any) -> Iterator[nn.Module]:
    middle = [] if unet.middle_block is None else [unet.middle_block]
    return (layer for block in (*unet.input_blocks, *middle, *unet.output_blocks) for layer in block)


def _unet_features(unet: Any) -> Iterator[Site]:
    """``output.4.res``: what a residual block adds; ``input.3.conv``: a convolution between resolutions, or the first;
    ``middle.0.res.1`` where a block holds several."""
    middle = [] if unet.middle_block is None else [unet.middle_block]
    order = count()
    for part, blocks in (("input", unet.input_blocks), ("middle", middle), ("output", unet.output_blocks)):
        for number, block in enumerate(blocks):
            residual = [layer.out_layers for layer in block if isinstance(layer, ResBlock)]
            resampling = [layer for layer in block if isinstance(layer, nn.Conv2d | Downsample | Upsample)]
            for name, modules in (("res", residual), ("conv", resampling)):
                for depth, module in enumerate(modules):
                    place = f"{part}.{number}.{name}"
                    yield Site(place if len(modules) == 1 else f"{place}.{depth}", next(order), "features", 0, module)


def _transformer_layers(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """The transformer layers of a block, each with the temporal one that follows it in SVD."""
    for transformer in block.modules():
        if isinstance(transformer, SpatialTransformer):
            layers = transformer.transformer_blocks
            yield from zip(layers, getattr(transformer, "time_stack", [None] * len(layers)), strict=True)


def _layer_sites(place: str, layer: Any, order: Iterator[int], kind: Literal["spatial", "temporal"]) -> Iterator[Site]:
    for name, is_cross in (("attn1", layer.disable_self_attn), ("attn2", not layer.switch_temporal_ca_to_sa)):
        attention = getattr(layer, name)
        if attention is not None:
            yield Site(
                f"{place}.{name}",
                next(order),
                "cross" if is_cross else kind,
                layer.n_heads,
                attention,
                frames_in="rows" if kind == "spatial" else "tokens",
                leading=None if kind == "spatial" else alone,
                replaced_in=(layer, name),
                shows_input=True,
            )


def _motion_of_blocks(
    blocks: Sequence[nn.Module], motion_part: str, motion_models: Sequence[nn.Module] | None
) -> list[list[nn.Module]]:
    """For every block the motion modules in it, in the order they run.

    AnimateDiff-Evolved inserts them for a run, one into every block that has a transformer or a residual block,
    right behind it: a motion model inserted later runs earlier.
    """
    if motion_models is None:
        return [[m for m in block.children() if hasattr(m, "temporal_transformer")] for block in blocks]
    inserted: list[list[nn.Module]] = [[] for _ in blocks]
    hosts = [
        n
        for n, block in enumerate(blocks)
        if any(isinstance(m, SpatialTransformer | ResBlock) for m in block.children())
    ]
    for motion_model in motion_models:
        part: Any = getattr(motion_model, motion_part, None) or []
        groups = [part] if hasattr(part, "motion_modules") else part
        modules = [module for group in groups for module in getattr(group, "motion_modules", ())]
        for number, module in zip(hosts, modules, strict=False):
            inserted[number].insert(0, module)
    return inserted


def _motion_attention(modules: Iterable[nn.Module]) -> Iterator[Any]:
    return (m for module in modules for m in module.modules() if hasattr(m, "actual_attention"))


FAMILIES = (
    Family(
        "UNets (SD1.5, SD2, SDXL, SVD, AnimateDiff)",
        lambda m: isinstance(m, UNetModel),
        _walk_unet,
        _unet_layers,
        draws_pictures=True,
        features=_unet_features,
    ),
)
