"""The families of models whose attention is known: what tells them, and where they attend.

A family is one function that walks a diffusion model and yields its attention sites in the order they run, and one
line in ``FAMILIES``. Techniques know nothing of families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.ldm.wan.model import CameraWanModel, VaceWanModel, WanI2VCrossAttention, WanModel
from torch import nn

Kind = Literal["spatial", "temporal", "joint", "cross", "text"]
"""Whose tokens meet: those of one frame, one place's in all frames, all of the clip's (and the text's), the clip's and
those of a condition, or only the text's among themselves (HunyuanVideo's refiner of its prompt)."""


@dataclass(frozen=True)
class Site:
    """One attention.

    ``order`` counts a model's sites in the order they run. ``module`` is the one whose forward attends; where it does
    so more than once, its sites share it, in the order of its calls, and further calls belong to the last.
    ``frames_in`` tells whether frames lie in the rows or in the tokens of q; ``text_first``, whether text comes before
    them. ``attends_by`` is the module's attribute that holds its attention, where that is not ComfyUI's own: it is
    replaced for the length of a call, so no two threads may share the module (AnimateDiff-Evolved's own rule too).
    ``replaced_in`` is the transformer block, and the name there, by which other packs replace the attention.
    """

    name: str
    order: int
    kind: Kind
    heads: int
    module: nn.Module = field(repr=False, compare=False)
    frames_in: Literal["rows", "tokens"] | None = field(default="rows", repr=False)
    text_first: bool = field(default=False, repr=False)
    attends_by: str | None = field(default=None, repr=False)
    replaced_in: tuple[nn.Module, str] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Family:
    """``owns`` tells its diffusion models; ``walk`` yields their sites, given a counter of the order and the motion
    models that a run inserts (None: has inserted); ``layers`` are the modules that the latents' rows go through, in
    the order they run; ``patch`` are the latent frames, rows and columns of one token."""

    name: str
    owns: Callable[[nn.Module], bool]
    walk: Callable[[nn.Module, Iterator[int], Sequence[nn.Module] | None], Iterator[Site]]
    layers: Callable[[Any], Iterable[nn.Module]]
    patch: Callable[[Any], Sequence[int]] = lambda model: model.patch_size


# UNets: SD1.5, SD2, SDXL, SVD, and AnimateDiff-Evolved's motion modules in the former ------------------------------


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
                    attends_by="actual_attention",
                )


def _unet_layers(unet: Any) -> Iterator[nn.Module]:
    middle = [] if unet.middle_block is None else [unet.middle_block]
    return (layer for block in (*unet.input_blocks, *middle, *unet.output_blocks) for layer in block)


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
                replaced_in=(layer, name),
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


# Video transformers ------------------------------------------------------------------------------------------------


def _walk_wan(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.self_attn``, ``blocks.0.cross_attn``; image-to-video attends to ``cross_attn.image`` first, then to
    ``cross_attn.text``. VACE's own blocks: ``vace_blocks.0.self_attn``."""
    vace = getattr(model, "vace_layers_mapping", {})
    for number, block in enumerate(model.blocks):
        yield from _wan_block(f"blocks.{number}", block, order)
        if number in vace:
            yield from _wan_block(f"vace_blocks.{vace[number]}", model.vace_blocks[vace[number]], order)


def _wan_layers(model: Any) -> Iterator[nn.Module]:
    vace = getattr(model, "vace_layers_mapping", {})
    for number, block in enumerate(model.blocks):
        yield block
        if number in vace:
            yield model.vace_blocks[vace[number]]


def _wan_block(place: str, block: Any, order: Iterator[int]) -> Iterator[Site]:
    yield Site(f"{place}.self_attn", next(order), "joint", block.num_heads, block.self_attn, "tokens")
    names = ("cross_attn.image", "cross_attn.text") if _sees_an_image(block) else ("cross_attn",)
    for name in names:
        yield Site(f"{place}.{name}", next(order), "cross", block.num_heads, block.cross_attn, "tokens")


def _sees_an_image(block: Any) -> bool:
    return isinstance(block.cross_attn, WanI2VCrossAttention)


def _walk_cogvideox(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0``: text and video together."""
    for number, block in enumerate(model.blocks):
        yield Site(f"blocks.{number}", next(order), "joint", block.num_heads, block, "tokens", text_first=True)


def _walk_ltxv(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.attn1``: the video; ``blocks.0.attn2``: to the text."""
    for number, block in enumerate(model.transformer_blocks):
        kinds: tuple[tuple[str, Kind], ...] = (("attn1", "joint"), ("attn2", "cross"))
        for name, kind in kinds:
            attention = getattr(block, name)
            yield Site(f"blocks.{number}.{name}", next(order), kind, attention.heads, attention, "tokens")


def _walk_hunyuan_video(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``text.0``: the prompt's refiner, text alone; ``double.0``, ``single.0``: text and video together."""
    for number, block in enumerate(model.txt_in.individual_token_refiner.blocks):
        yield Site(f"text.{number}", next(order), "text", block.heads, block, frames_in=None)
    # HunyuanImage has the same class
    frames_in: Literal["rows", "tokens"] = "tokens" if len(model.patch_size) == 3 else "rows"
    for part, blocks in (("double", model.double_blocks), ("single", model.single_blocks)):
        for number, block in enumerate(blocks):
            yield Site(f"{part}.{number}", next(order), "joint", block.num_heads, block, frames_in, text_first=True)


# A subclass may attend elsewhere too (audio, poses): where that is so, the class itself is asked for.
FAMILIES = (
    Family(
        "UNets (SD1.5, SD2, SDXL, SVD, AnimateDiff)",
        lambda m: isinstance(m, UNetModel),
        _walk_unet,
        _unet_layers,
        lambda m: (1, 1, 1),
    ),
    Family("Wan 2.1 and 2.2", lambda m: type(m) in (WanModel, VaceWanModel, CameraWanModel), _walk_wan, _wan_layers),
    Family(
        "CogVideoX",
        lambda m: isinstance(m, CogVideoXTransformer3DModel),
        _walk_cogvideox,
        lambda m: m.blocks,
        lambda m: (m.patch_size_t or 1, m.patch_size, m.patch_size),
    ),
    Family("LTXV", lambda m: type(m) is LTXVModel, _walk_ltxv, lambda m: m.transformer_blocks, lambda m: (1, 1, 1)),
    Family(
        "HunyuanVideo",
        lambda m: isinstance(m, HunyuanVideo),
        _walk_hunyuan_video,
        lambda m: (*m.double_blocks, *m.single_blocks),
    ),
)
