"""Where a model attends: its attention sites, by name, and the selectors users write for them.

A family of models is one function here that walks a diffusion model and yields its sites in the order they run.
Names are dotted paths (``input.4.attn1``); a selector matches whole components (``blocks.1`` is not ``blocks.10``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from torch import nn

Kind = Literal["spatial", "temporal", "joint", "cross"]


class UnknownModelError(ValueError):
    """The model belongs to no family whose attention sites are known."""


class NoSuchSiteError(ValueError):
    """A selector, or a run, names attention layers that the model does not have."""


@dataclass(frozen=True)
class Site:
    """One attention layer.

    ``order`` counts a model's sites in the order they run; ``patch_key`` is where ComfyUI's ``patches_replace`` keeps
    replacements for it, such as ("attn1", "input", 4, 0), if it does.
    """

    name: str
    order: int
    kind: Kind
    heads: int
    module: nn.Module = field(repr=False, compare=False)
    patch_key: tuple | None = field(default=None, repr=False)


def list_sites(diffusion_model: nn.Module) -> list[Site]:
    """All attention sites of ``diffusion_model``, in the order they run; UnknownModelError for other families."""
    for recognise, walk in FAMILIES.values():
        if recognise(diffusion_model):
            return list(walk(diffusion_model))
    raise UnknownModelError(
        f"The attention layers of {type(diffusion_model).__name__} are not known to this pack, "
        f"expected one of: {', '.join(FAMILIES)}. Use a model of one of these families."
    )


def select_sites(sites: Iterable[Site], selector: str, kinds: Iterable[Kind]) -> list[Site]:
    """The sites of ``kinds`` that ``selector`` names, in order.

    ``selector``: ``*``, or pieces separated by commas: the first components of a name (``middle``, ``input.4``),
    any of them a range (``output.3-8``) or ``*``, or a kind (``spatial``). NoSuchSiteError where a piece matches
    nothing.
    """
    kinds = tuple(kinds)
    eligible = [site for site in sites if site.kind in kinds]
    pieces = [piece.strip() for piece in selector.split(",") if piece.strip()]
    chosen: set[str] = set()
    for piece in pieces:
        matched = {site.name for site in eligible if piece == site.kind or _matches(piece, site.name)}
        if not matched:
            raise NoSuchSiteError(
                f"layers: {piece!r} matches no {'/'.join(kinds)} attention layer of this model. "
                f"It has: {', '.join(site.name for site in eligible) or 'none'}. "
                "Write for example '*', 'middle', 'input.4' or 'output.3-8', separated by commas."
            )
        chosen |= matched
    if not pieces:
        raise NoSuchSiteError("layers is empty, expected at least one layer. Write '*' for all of them.")
    return [site for site in eligible if site.name in chosen]


def _matches(piece: str, name: str) -> bool:
    wanted, components = piece.split("."), name.split(".")
    return len(wanted) <= len(components) and all(map(_component_matches, wanted, components))


def _component_matches(wanted: str, component: str) -> bool:
    span = re.fullmatch(r"(\d+)-(\d+)", wanted)
    if span and component.isdigit():
        return int(span[1]) <= int(component) <= int(span[2])
    return wanted in ("*", component)


# Families ------------------------------------------------------------------------------------------------------


def _is_image_unet(model: nn.Module) -> bool:
    from comfy.ldm.modules.attention import SpatialVideoTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return isinstance(model, UNetModel) and not any(
        isinstance(m, SpatialVideoTransformer) for m in model.modules()
    )


def _walk_image_unet(unet: nn.Module) -> Iterator[Site]:
    """``input.4.attn1``, ``middle.0.attn1``, ``output.3.attn2``; ``input.7.1.attn1`` where a block holds several."""
    from comfy.ldm.modules.attention import SpatialTransformer

    order = count()
    middle = [] if unet.middle_block is None else [unet.middle_block]
    for part, blocks in (("input", unet.input_blocks), ("middle", middle), ("output", unet.output_blocks)):
        for number, block in enumerate(blocks):
            layers = [
                m for t in block.modules() if isinstance(t, SpatialTransformer) for m in t.transformer_blocks
            ]
            for depth, layer in enumerate(layers):
                place = f"{part}.{number}" if len(layers) == 1 else f"{part}.{number}.{depth}"
                for attention, kind in (
                    ("attn1", "cross" if layer.disable_self_attn else "spatial"),
                    ("attn2", "cross"),
                ):
                    module = getattr(layer, attention)
                    if module is not None:
                        key = (attention, part, number, depth)
                        yield Site(f"{place}.{attention}", next(order), kind, layer.n_heads, module, key)


FAMILIES: dict[str, tuple[Callable[[nn.Module], bool], Callable[[nn.Module], Iterator[Site]]]] = {
    "image UNets (SD1.5, SD2, SDXL)": (_is_image_unet, _walk_image_unet),
}
