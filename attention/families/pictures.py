"""Transformers that draw pictures: text and picture attend together, and the frames of a clip are the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from comfy.ldm.anima.model import Anima
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.flux.model import Flux
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.ldm.krea2.model import SingleStreamDiT as Krea2
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from torch import nn

from ...techniques.site import Kind, Leading, Site, after_text, alone, first, last, last_padded
from . import videos
from .family import Family, Layers, Walk


def _walk_flux(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``double_blocks.0``, ``single_blocks.0``: text, picture, references."""
    for part in ("double_blocks", "single_blocks"):
        for number, block in enumerate(getattr(model, part)):
            yield Site(f"{part}.{number}", next(order), "joint", block.num_heads, block, leading=after_text)


def _walk_sd3(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``joint_blocks.0``: text and picture; SD3.5 Medium's ``joint_blocks.0.attn2``: the picture alone."""
    for number, block in enumerate(model.joint_blocks):
        x_block, place = block.x_block, f"joint_blocks.{number}"
        yield Site(place, next(order), "joint", x_block.attn.num_heads, block, leading=last)
        if x_block.x_block_self_attn:
            yield Site(f"{place}.attn2", next(order), "spatial", x_block.attn2.num_heads, block, leading=alone)


def _walk_qwen_image(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``transformer_blocks.0.attn``: text, picture, references."""
    for number, block in enumerate(model.transformer_blocks):
        place = f"transformer_blocks.{number}.attn"
        yield Site(place, next(order), "joint", block.attn.heads, block.attn, leading=after_text)


def _walk_lumina2(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``context_refiner.0``: text; ``siglip_refiner.0``: Z-Image Omni's references; ``noise_refiner.0``: the picture;
    ``layers.0``: text, references, picture.

    Z-Image pads the picture at its end.
    """
    leading = last if model.pad_tokens_multiple is None else last_padded(model.pad_tokens_multiple)
    parts = ("context_refiner", "siglip_refiner", "noise_refiner", "layers")
    yield from _refined(model, order, parts, leading, lambda block: (block.attention, block.attention.n_local_heads))


def _walk_omnigen2(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """Lumina 2's names, and ``ref_image_refiner.0``: the references; nothing is padded."""
    parts = ("context_refiner", "noise_refiner", "ref_image_refiner", "layers")
    yield from _refined(model, order, parts, last, lambda block: (block.attn, block.attn.heads))


def _refined(
    model: Any, order: Iterator[int], parts: Sequence[str], leading: Leading, attention_of: Any
) -> Iterator[Site]:
    kinds: dict[str, Kind] = {"context_refiner": "text", "noise_refiner": "spatial", "layers": "joint"}
    for part in parts:
        kind = kinds.get(part, "reference")
        needs = "reference images" if kind == "reference" else ""
        for number, block in enumerate(getattr(model, part) or ()):
            module, heads = attention_of(block)
            if kind in ("text", "reference"):
                yield Site(f"{part}.{number}", next(order), kind, heads, module, frames_in=None, needs=needs)
            else:
                yield Site(f"{part}.{number}", next(order), kind, heads, module, leading=leading)


def _refined_layers(model: Any) -> Iterator[nn.Module]:
    return (block for part in (model.context_refiner, model.noise_refiner, model.layers) for block in part)


def _walk_krea2(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``txtfusion.layerwise_blocks.0``: text; ``blocks.0``: text, picture, references."""
    for part in ("layerwise_blocks", "refiner_blocks"):
        for number, block in enumerate(getattr(model.txtfusion, part)):
            place = f"txtfusion.{part}.{number}"
            yield Site(place, next(order), "text", block.attn.heads, block.attn, frames_in=None)
    for number, block in enumerate(model.blocks):
        yield Site(f"blocks.{number}", next(order), "joint", block.attn.heads, block.attn, leading=after_text)


def _walk_cosmos(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.self_attn``: the picture; ``blocks.0.cross_attn``: to the text."""
    names = ("self_attn", "cross_attn")
    yield from videos.self_and_cross(model.blocks, order, "spatial", "rows", "n_heads", names, shows_input=True)


def _walk_kandinsky(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    yield from videos.kandinsky(model, order, "spatial", "rows")


def _walk_hidream(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``double_stream_blocks.0``, ``single_stream_blocks.0``: picture, text."""
    for part in ("double_stream_blocks", "single_stream_blocks"):
        for number, block in enumerate(getattr(model, part)):
            attention = block.block.attn1
            yield Site(f"{part}.{number}", next(order), "joint", attention.heads, attention, leading=first)


def _square(size: str) -> Callable[[Any], tuple[int, int, int]]:
    """``size``: the model's name for the height and width of a patch."""
    return lambda model: (1, getattr(model, size), getattr(model, size))


def _double_and_single(model: Any) -> Iterator[nn.Module]:
    return (block for part in (model.double_blocks, model.single_blocks) for block in part)


def _double_and_single_streams(model: Any) -> Iterator[nn.Module]:
    return (block for part in (model.double_stream_blocks, model.single_stream_blocks) for block in part)


def _pictures(name: str, classes: Sequence[type], walk: Walk, layers: Layers, size: str) -> Family:
    """A subclass may lay its tokens out otherwise: the classes themselves are asked for."""
    return Family(name, lambda m: type(m) in classes, walk, layers, _square(size), draws_pictures=True)


def _blocks(name: str) -> Layers:
    return lambda model: getattr(model, name)


FAMILIES = (
    _pictures("Flux", (Flux, Chroma), _walk_flux, _double_and_single, "patch_size"),
    _pictures("SD3", (OpenAISignatureMMDITWrapper,), _walk_sd3, _blocks("joint_blocks"), "patch_size"),
    _pictures(
        "Qwen-Image", (QwenImageTransformer2DModel,), _walk_qwen_image, _blocks("transformer_blocks"), "patch_size"
    ),
    _pictures("Z-Image and Lumina 2", (NextDiT,), _walk_lumina2, _refined_layers, "patch_size"),
    _pictures("OmniGen 2", (OmniGen2Transformer2DModel,), _walk_omnigen2, _refined_layers, "patch_size"),
    _pictures("Krea 2", (Krea2,), _walk_krea2, _blocks("blocks"), "patch"),
    _pictures("Anima", (Anima,), _walk_cosmos, _blocks("blocks"), "patch_spatial"),
    Family(
        "Cosmos-Predict2",
        lambda m: type(m) is MiniTrainDIT and not videos.is_cosmos_video(m),
        _walk_cosmos,
        _blocks("blocks"),
        _square("patch_spatial"),
        draws_pictures=True,
    ),
    Family(
        "HiDream I1",
        lambda m: type(m) is HiDreamImageTransformer2DModel,
        _walk_hidream,
        _double_and_single_streams,
        _square("patch_size"),
        draws_pictures=True,
        unfit={"image_cond": "HiDream E1 lays the picture to edit beside the frame, row by row"},
    ),
    Family(
        "Kandinsky 5 Image",
        lambda m: type(m) is Kandinsky5 and not videos.is_kandinsky_video(m),
        _walk_kandinsky,
        _blocks("visual_transformer_blocks"),
        lambda m: m.patch_size,
        draws_pictures=True,
    ),
    Family(
        "HunyuanImage 2.1",
        lambda m: isinstance(m, HunyuanVideo) and len(m.patch_size) == 2,
        videos.walk_hunyuan,
        _double_and_single,
        lambda m: (1, *m.patch_size),
        draws_pictures=True,
    ),
)
