"""Video transformers: joint attention over the frames of a clip, which lie in the tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.kandinsky5.model import Kandinsky5
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
    ``vace_blocks.0.self_attn``; S2V's sound between blocks: ``audio_injector.0``. Animate's faces attend in calls that
    take no options: nothing can reach them."""
    vace = getattr(model, "vace_layers_mapping", {})
    leading = first if isinstance(model, WanModel_S2V | HumoWanModel) else alone
    sound = model.audio_injector if isinstance(model, WanModel_S2V) else None
    for number, block in enumerate(model.blocks):
        yield from _wan_block(f"blocks.{number}", block, order, leading)
        if number in vace:
            yield from _wan_block(f"vace_blocks.{vace[number]}", model.vace_blocks[vace[number]], order, leading)
        if sound is not None and number in sound.injected_block_id:
            place = sound.injected_block_id[number]
            yield _of_sound(f"audio_injector.{place}", order, "cross", block.num_heads, sound.injector[place])


def _of_sound(name: str, order: Iterator[int], kind: Kind, heads: int, module: nn.Module) -> Site:
    """A site that is there only where a run has sound."""
    return Site(name, next(order), kind, heads, module, frames_in=None, needs="sound", reads_text=False)


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
        site = Site(f"{place}.{name}", next(order), "cross", heads, block.cross_attn, "tokens", leading)
        yield replace(site, reads_text=not name.endswith(".image"))
    if isinstance(block, WanAttentionBlockAudio):  # a frame to a row, and more frames than the latents have
        sound = block.audio_cross_attn_wrapper.audio_cross_attn
        yield _of_sound(f"{place}.audio_cross_attn", order, "cross", heads, sound)


def _sees_an_image(block: Any) -> bool:
    return isinstance(block.cross_attn, WanI2VCrossAttention)


def _walk_cogvideox(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0``: text and video together."""
    for number, block in enumerate(model.blocks):
        yield Site(f"blocks.{number}", next(order), "joint", block.num_heads, block, "tokens", last)


def _walk_ltxv(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.attn1``: the video; ``blocks.0.attn2``: to the text."""
    yield from self_and_cross(model.transformer_blocks, order, "joint", "tokens", "heads", ("attn1", "attn2"))


def _walk_cosmos(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.self_attn``: the video; ``blocks.0.cross_attn``: to the text."""
    yield from self_and_cross(model.blocks, order, "joint", "tokens", "n_heads", ("self_attn", "cross_attn"))


def self_and_cross(
    blocks: Iterable[Any],
    order: Iterator[int],
    kind: Kind,
    frames_in: Literal["rows", "tokens"],
    heads: str,
    names: tuple[str, str],
    part: str = "blocks",
    shows_input: bool = False,
) -> Iterator[Site]:
    """Of each block its attentions ``names``: of ``kind`` to the picture or video itself, then to the text. ``heads``:
    an attention's name for their number."""
    for number, block in enumerate(blocks):
        for name, kind_there in zip(names, (kind, "cross"), strict=True):
            attention = getattr(block, name)
            place = f"{part}.{number}.{name}"
            count = getattr(attention, heads)
            yield Site(place, next(order), kind_there, count, attention, frames_in, alone, shows_input=shows_input)


def _walk_kandinsky(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    yield from kandinsky(model, order, "joint", "tokens")


def kandinsky(model: Any, order: Iterator[int], kind: Kind, frames_in: Literal["rows", "tokens"]) -> Iterator[Site]:
    """``text.0``: text; ``blocks.0.self_attention``: picture or video; ``blocks.0.cross_attention``: to the text."""
    for number, block in enumerate(model.text_transformer_blocks):
        attention = block.self_attention
        yield Site(f"text.{number}", next(order), "text", attention.num_heads, attention, frames_in=None)
    names = ("self_attention", "cross_attention")
    yield from self_and_cross(model.visual_transformer_blocks, order, kind, frames_in, "num_heads", names)


def is_kandinsky_video(model: Any) -> bool:
    """Video models are also told the first frame, and where it is."""
    return model.visual_embed_dim != model.in_visual_dim * math.prod(model.patch_size)


def is_cosmos_video(model: Any) -> bool:
    """Video models have a channel that tells the given frames."""
    return model.in_channels > model.out_channels


def _walk_mochi(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0``: video, text."""
    for number, block in enumerate(model.blocks):
        yield Site(f"blocks.{number}", next(order), "joint", block.attn.num_heads, block.attn, "tokens", first)


def _walk_minimax(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0``: text, references, sound, video; its refiner of text runs before sampling."""
    for number, block in enumerate(model.blocks):
        yield Site(f"blocks.{number}", next(order), "joint", block.attn.heads, block.attn, "tokens", last)


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
            where: dict[str, Any] = {"frames_in": "tokens", "leading": alone} if of_video else {"frames_in": None}
            where["needs"] = "sound" if "audio" in name else ""
            where["reads_text"] = name.endswith("attn2")
            yield Site(f"blocks.{number}.{name}", next(order), kind, attention.heads, attention, **where)


def walk_hunyuan(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``text.0``: the prompt's refiner, text alone; ``double.0``, ``single.0``: text and video together."""
    for number, block in enumerate(model.txt_in.individual_token_refiner.blocks):
        yield Site(f"text.{number}", next(order), "text", block.heads, block, frames_in=None)
    # HunyuanImage has the same class
    frames_in: Literal["rows", "tokens"] = "tokens" if len(model.patch_size) == 3 else "rows"
    for part, blocks in (("double", model.double_blocks), ("single", model.single_blocks)):
        for number, block in enumerate(blocks):
            yield Site(f"{part}.{number}", next(order), "joint", block.num_heads, block, frames_in, last)


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
        lambda m: isinstance(m, HunyuanVideo) and len(m.patch_size) == 3,
        walk_hunyuan,
        lambda m: (*m.double_blocks, *m.single_blocks),
        lambda m: m.patch_size,
    ),
    Family(
        "Kandinsky 5",
        lambda m: type(m) is Kandinsky5 and is_kandinsky_video(m),
        _walk_kandinsky,
        lambda m: m.visual_transformer_blocks,
        lambda m: m.patch_size,
    ),
    Family(
        "Cosmos-Predict2 Video",
        lambda m: type(m) is MiniTrainDIT and is_cosmos_video(m),
        _walk_cosmos,
        lambda m: m.blocks,
        lambda m: (m.patch_temporal, m.patch_spatial, m.patch_spatial),
    ),
    Family(
        "Mochi",
        lambda m: type(m) is AsymmDiTJoint,
        _walk_mochi,
        lambda m: m.blocks,
        lambda m: (1, m.patch_size, m.patch_size),
    ),
    Family(
        "MiniMax H3",
        lambda m: type(m).__name__ == "MiniMaxH3Model",  # not every ComfyUI has it
        _walk_minimax,
        lambda m: m.blocks,
        lambda m: m.patch_size,
        one_row=True,
    ),
)

REFUSED = {
    "GeneralDIT": (
        "Cosmos 1",
        "its layers keep the rows of a batch behind frames, height and width, where they cannot be told apart by "
        "branch. Use Cosmos-Predict2.",
    ),
    "WanAnimate2Model": (
        "Wan Animate 2",
        "each of its frames attends to its own pose, in calls that PyTorch's hooks do not see. Use Wan Animate or "
        "another Wan model.",
    ),
    "NaDiT": (
        "SeedVR2",
        "it attends in windows, and those of all clips in a call are packed into one sequence that does not tell whose "
        "they are. Use this node on the model that makes the video, before SeedVR2 restores it.",
    ),
}
"""By its class, what a model is called that attends in a way no technique can act on, and why."""
