"""Transformers that draw pictures: text and picture attend together, and the frames of a clip are the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from comfy.ldm.anima.model import Anima
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.krea2.model import SingleStreamDiT as Krea2
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from torch import nn

from ...techniques.site import Kind, Leading, Site, after_text, alone, last, last_padded
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
    """``context_refiner.0``: text; ``noise_refiner.0``: the picture; ``layers.0``: text, references, picture.

    Z-Image pads the picture at its end.
    """
    leading = last if model.pad_tokens_multiple is None else last_padded(model.pad_tokens_multiple)
    yield from _refined(model, order, leading, lambda block: (block.attention, block.attention.n_local_heads))


def _walk_omnigen2(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """Lumina 2's names; nothing is padded."""
    yield from _refined(model, order, last, lambda block: (block.attn, block.attn.heads))


def _refined(model: Any, order: Iterator[int], leading: Leading, attention_of: Any) -> Iterator[Site]:
    # the refiners of references are no sites: they run only where there are some
    parts: tuple[tuple[str, Kind], ...] = (
        ("context_refiner", "text"),
        ("noise_refiner", "spatial"),
        ("layers", "joint"),
    )
    for part, kind in parts:
        for number, block in enumerate(getattr(model, part)):
            module, heads = attention_of(block)
            if kind == "text":
                yield Site(f"{part}.{number}", next(order), kind, heads, module, frames_in=None)
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


def _walk_anima(model: Any, order: Iterator[int], _motion_models: object) -> Iterator[Site]:
    """``blocks.0.self_attn``: the picture; ``blocks.0.cross_attn``: to the text."""
    kinds: tuple[tuple[str, Kind], ...] = (("self_attn", "spatial"), ("cross_attn", "cross"))
    for number, block in enumerate(model.blocks):
        for name, kind in kinds:
            attention = getattr(block, name)
            yield Site(f"blocks.{number}.{name}", next(order), kind, attention.n_heads, attention, leading=alone)


def _square(size: str) -> Callable[[Any], tuple[int, int, int]]:
    """``size``: the model's name for the height and width of a patch."""
    return lambda model: (1, getattr(model, size), getattr(model, size))


def _double_and_single(model: Any) -> Iterator[nn.Module]:
    return (block for part in (model.double_blocks, model.single_blocks) for block in part)


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
    _pictures("Anima", (Anima,), _walk_anima, _blocks("blocks"), "patch_spatial"),
)
