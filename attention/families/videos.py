"""Video transformers: joint attention over the frames of a clip, which lie in the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.av_model import LTXAVModel
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.wan.model import (
    CameraWanModel,
    HumoWanModel,
    SCAIL2WanModel,
    SCAILWanModel,
    VaceWanModel,
    WanAttentionBlockAudio,
    WanI2VCrossAttention,
    WanModel,
    WanModel_S2V,
)
from comfy.ldm.wan.model_animate import AnimateWanModel
from torch import nn

from ...techniques.site import Kind, Leading, Site, alone, first, last
from .family import Family


def _walk_wan(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.self_attn``, ``blocks.0.cross_attn``; image-to-video attends to ``cross_attn.image`` first, then to
    ``cross_attn.text``; HuMo to its sound after them, ``blocks.0.audio_cross_attn``. VACE's own blocks:
    ``vace_blocks.0.self_attn``."""
    vace = getattr(model, "vace_layers_mapping", {})
    leading = first if isinstance(model, WanModel_S2V | HumoWanModel) else alone
    for number, block in enumerate(model.blocks):
        yield from _wan_block(f"blocks.{number}", block, order, leading)
        if number in vace:
            yield from _wan_block(f"vace_blocks.{vace[number]}", model.vace_blocks[vace[number]], order, leading)


def _wan_layers(model: Any) -> Iterator[nn.Module]:
    vace = getattr(model, "vace_layers_mapping", {})
    for number, block in enumerate(model.blocks):
        yield block
        if number in vace:
            yield model.vace_blocks[vace[number]]


def _wan_block(place: str, block: Any, order: Iterator[int], leading: Leading) -> Iterator[Site]:
    heads = block.num_heads
    yield Site(f"{place}.self_attn", next(order), "joint", heads, block.self_attn, "tokens", leading)
    names = ("cross_attn.image", "cross_attn.text") if _sees_an_image(block) else ("cross_attn",)
    for name in names:
        yield Site(f"{place}.{name}", next(order), "cross", heads, block.cross_attn, "tokens", leading)
    if isinstance(block, WanAttentionBlockAudio):  # a frame to a row, and more frames than the latents have
        sound = block.audio_cross_attn_wrapper.audio_cross_attn
        yield Site(f"{place}.audio_cross_attn", next(order), "cross", heads, sound, frames_in=None)


def _sees_an_image(block: Any) -> bool:
    return isinstance(block.cross_attn, WanI2VCrossAttention)


def _walk_cogvideox(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0``: text and video together."""
    for number, block in enumerate(model.blocks):
        yield Site(f"blocks.{number}", next(order), "joint", block.num_heads, block, "tokens", last)


def _walk_ltxv(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.attn1``: the video; ``blocks.0.attn2``: to the text."""
    for number, block in enumerate(model.transformer_blocks):
        kinds: tuple[tuple[str, Kind], ...] = (("attn1", "joint"), ("attn2", "cross"))
        for name, kind in kinds:
            attention = getattr(block, name)
            yield Site(f"blocks.{number}.{name}", next(order), kind, attention.heads, attention, "tokens", alone)


def _walk_ltxav(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.attn1``: the video; ``blocks.0.attn2``: to the text; ``blocks.0.audio_attn1`` and ``audio_attn2``: the
    same of its sound; ``blocks.0.audio_to_video_attn`` and ``video_to_audio_attn``: each to the other."""
    kinds: tuple[tuple[str, Kind, bool], ...] = (
        ("attn1", "joint", True),
        ("attn2", "cross", True),
        ("audio_attn1", "sound", False),
        ("audio_attn2", "cross", False),
        ("audio_to_video_attn", "cross", True),
        ("video_to_audio_attn", "cross", False),
    )
    for number, block in enumerate(model.transformer_blocks):
        for name, kind, of_video in kinds:
            attention = getattr(block, name)
            place = ("tokens", alone) if of_video else (None, None)
            yield Site(f"blocks.{number}.{name}", next(order), kind, attention.heads, attention, *place)


def _walk_hunyuan_video(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``text.0``: the prompt's refiner, text alone; ``double.0``, ``single.0``: text and video together."""
    for number, block in enumerate(model.txt_in.individual_token_refiner.blocks):
        yield Site(f"text.{number}", next(order), "text", block.heads, block, frames_in=None)
    # HunyuanImage has the same class
    frames_in: Literal["rows", "tokens"] = "tokens" if len(model.patch_size) == 3 else "rows"
    for part, blocks in (("double", model.double_blocks), ("single", model.single_blocks)):
        for number, block in enumerate(blocks):
            yield Site(f"{part}.{number}", next(order), "joint", block.num_heads, block, frames_in, last)


def _patch_of_hunyuan(model: Any) -> tuple[int, ...]:
    """HunyuanImage has patches of rows and columns alone."""
    return (1, *model.patch_size)[-3:]


_WAN = (
    WanModel,
    VaceWanModel,
    CameraWanModel,
    WanModel_S2V,
    HumoWanModel,
    SCAILWanModel,
    SCAIL2WanModel,
    AnimateWanModel,
)

# A subclass may attend elsewhere too (audio, poses): where that is so, the class itself is asked for.
FAMILIES = (
    Family(
        "Wan 2.1 and 2.2",
        lambda m: type(m) in _WAN,
        _walk_wan,
        _wan_layers,
        lambda m: m.patch_size,
    ),
    Family(
        "CogVideoX",
        lambda m: isinstance(m, CogVideoXTransformer3DModel),
        _walk_cogvideox,
        lambda m: m.blocks,
        lambda m: (m.patch_size_t or 1, m.patch_size, m.patch_size),
    ),
    Family("LTX-2", lambda m: type(m) is LTXAVModel, _walk_ltxav, lambda m: m.transformer_blocks, lambda m: (1, 1, 1)),
    Family("LTXV", lambda m: type(m) is LTXVModel, _walk_ltxv, lambda m: m.transformer_blocks, lambda m: (1, 1, 1)),
    Family(
        "HunyuanVideo",
        lambda m: isinstance(m, HunyuanVideo),
        _walk_hunyuan_video,
        lambda m: (*m.double_blocks, *m.single_blocks),
        _patch_of_hunyuan,
    ),
)
