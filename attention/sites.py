"""Where a model attends: its attention sites, by name, and the selectors users write for them.

Names are dotted paths (``input.4.attn1``); a selector matches whole components (``blocks.1`` is not ``blocks.10``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from .families import FAMILIES, REFUSED, Family, Kind, Site
from .keys import INSERTED

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

__all__ = [
    "Kind",
    "NoSuchSiteError",
    "Site",
    "UnknownModelError",
    "family_of",
    "features_of",
    "known_family",
    "layers_of",
    "list_sites",
    "network_of",
    "optional_sites",
    "require_fit",
    "require_shown",
    "select_features",
    "select_sites",
    "sites_in_run",
    "sites_of",
]


MOTION = "motion"
"""The component of a site's name that tells AnimateDiff's layers."""


class Inserts(Protocol):
    def sites(self, sites: Sequence[Site]) -> list[Site]:
        """``sites`` of a model with its own among them, in the order they run."""
        ...


class UnknownModelError(ValueError):
    """The model belongs to no family whose attention sites are known."""


class NoSuchSiteError(ValueError):
    """A selector, or a run, names attention layers that the model does not have."""


def list_sites(
    diffusion_model: nn.Module, motion_models: Sequence[nn.Module] | None = None, inserted: Iterable[Inserts] = ()
) -> list[Site]:
    """All attention sites of ``diffusion_model``, in the order they run; UnknownModelError for other families.

    ``motion_models``: AnimateDiff's, that a run will insert; None lists those that are inserted now, during a run.
    ``inserted``: what this pack leads the features through (``INSERTED`` of transformer_options).
    """
    model = _uncompiled(diffusion_model)
    sites = list(family_of(model).walk(model, count(), motion_models))
    for each in inserted:
        sites = each.sites(sites)
    return sites


def sites_of(model: ModelPatcher) -> list[Site]:
    """All attention sites that a run of ``model`` has, its motion models' too. UnknownModelError as above."""
    motion_models = [patcher.model for patcher in model.get_additional_models()]
    inserted = model.model_options["transformer_options"].get(INSERTED, ())
    return list_sites(model.get_model_object("diffusion_model"), motion_models, inserted)


def sites_in_run(diffusion_model: nn.Module, inserted: Iterable[Inserts], patched: Mapping[str, str]) -> list[Site]:
    """All attention sites of the model that runs. ``patched``: by node, the class of the model that it was put on.

    UnknownModelError says which node replaced the class, where one did.
    """
    try:
        return list_sites(diffusion_model, inserted=inserted)
    except UnknownModelError:
        now = type(_uncompiled(diffusion_model))
        for node, was in patched.items():
            if was != now.__name__:
                raise UnknownModelError(
                    f"{node} was put on a {was}, but the model that runs is a {now.__name__} ({now.__module__}): "
                    "another node has replaced its class since. Remove that node, which changes where the model "
                    "attends."
                ) from None
        raise


def features_of(diffusion_model: nn.Module) -> list[Site]:
    """Its convolutional and residual blocks, in the order they run; none where a family has none."""
    model = _uncompiled(diffusion_model)
    return list(family_of(model).features(model))


def network_of(model: ModelPatcher) -> str:
    """The class of its diffusion model, of a compiled one too."""
    return type(_uncompiled(model.get_model_object("diffusion_model"))).__name__


def require_fit(diffusion_model: nn.Module, inputs: Mapping[str, Any], asked_by: Iterable[str]) -> None:
    """UnknownModelError where a model call has ``inputs`` with which frames do not lie where its sites say."""
    for name, reason in family_of(diffusion_model).unfit.items():
        if inputs.get(name) is not None:
            raise UnknownModelError(
                f"{' and '.join(asked_by)} cannot tell where the frames lie in this conditioning: {reason}. Use a "
                "conditioning without such a picture, or remove the node."
            )


def layers_of(diffusion_model: nn.Module) -> list[nn.Module]:
    """The layers that the model's rows go through, one after the other: a UNet's, or a transformer's blocks."""
    model = _uncompiled(diffusion_model)
    return list(family_of(model).layers(model))


def known_family(diffusion_model: nn.Module) -> Family | None:
    """The family of ``diffusion_model``, if the pack knows it."""
    model = _uncompiled(diffusion_model)
    return next((family for family in FAMILIES if family.owns(model)), None)


def family_of(diffusion_model: nn.Module) -> Family:
    """The family of ``diffusion_model``; UnknownModelError for others."""
    if (family := known_family(diffusion_model)) is not None:
        return family
    model = _uncompiled(diffusion_model)
    module = type(model).__module__
    if (name := type(model).__name__) in REFUSED:
        title, reason = REFUSED[name]
        raise UnknownModelError(f"{title} ({name}) does not work with this node: {reason}")
    stranger = "" if module.startswith("comfy.") else f"Its class ({module}) may be another node's: remove that one. "
    names = ", ".join(family.name for family in FAMILIES)
    raise UnknownModelError(
        f"The attention layers of {type(model).__name__} are not known to this pack, expected one of: {names}. "
        f"{stranger}Use a model of one of these families."
    )


def _uncompiled(diffusion_model: nn.Module) -> nn.Module:
    return getattr(diffusion_model, "_orig_mod", diffusion_model)


def select_sites(sites: Iterable[Site], selector: str, kinds: Iterable[Kind], by_row: bool = False) -> list[Site]:
    """The sites of ``kinds`` that ``selector`` names, in order; with ``by_row`` those alone that have a frame to a row.

    ``selector``: ``*``, or pieces separated by commas: the first components of a name (``middle``, ``input.4``),
    any of them a range (``output.3-8``) or ``*``, or a kind (``spatial``). NoSuchSiteError where a piece matches
    nothing, or the model has no layers of these kinds.
    """
    sites, kinds = list(sites), tuple(kinds)
    eligible = [site for site in sites if site.kind in kinds and (not by_row or site.frames_in == "rows")]
    pieces = _pieces(selector)
    if not eligible and by_row:
        pictures = ", ".join(family.name for family in FAMILIES if family.draws_pictures)
        raise NoSuchSiteError(
            "Expected an image model, whose batch is the clip; this model already attends across the frames of a "
            f"clip. Use one of these families: {pictures}."
        )
    if not eligible:
        there = sorted({site.kind for site in sites})
        raise NoSuchSiteError(
            f"Expected a model with {' or '.join(kinds)} attention, this one has only {' and '.join(there)} attention. "
            "Use a model of another family, or a node for these kinds."
        )
    if not pieces:
        raise NoSuchSiteError("layers is empty, expected at least one layer. Write '*' for all of them.")
    chosen: set[str] = set()
    for piece in pieces:
        matched = {site.name for site in eligible if piece == site.kind or _matches(piece, site.name)}
        if not matched and MOTION in piece.split(".") and not any(MOTION in site.name.split(".") for site in sites):
            raise NoSuchSiteError(
                f"layers: {piece!r} is a layer of a motion model, and this model has none here. Connect AnimateDiff "
                "before this node, or choose other layers."
            )
        if not matched:
            here = "/".join(kind for kind in kinds if any(site.kind == kind for site in eligible))
            raise NoSuchSiteError(
                f"layers: {piece!r} matches no {here} attention layer of this model. "
                f"It has: {', '.join(site.name for site in eligible)}. Write for example '*', "
                f"{_example(eligible[-1].name)!r} or {eligible[0].name!r}, separated by commas."
            )
        chosen |= matched
    return [site for site in eligible if site.name in chosen]


def require_shown(sites: Iterable[Site], asked_by: str) -> list[Site]:
    """Of ``sites`` those whose input is shown. NoSuchSiteError where none is."""
    shown = [site for site in sites if site.shows_input]
    if not shown:
        raise NoSuchSiteError(
            f"{asked_by} compares the tokens that go into a layer, which this model does not expose. Use a model of "
            "another family: SD1.5, SD2, SDXL, Anima or Cosmos-Predict2."
        )
    return shown


def select_features(diffusion_model: nn.Module, selector: str) -> list[Site]:
    """The blocks of features that ``selector`` names, as in :func:`select_sites`."""
    blocks = features_of(diffusion_model)
    if not blocks:
        raise NoSuchSiteError(
            "Expected a model with convolutional or residual blocks (SD1.5, SD2, SDXL, SVD); "
            f"{type(_uncompiled(diffusion_model)).__name__} has none. Leave its features as they are, or use such a "
            "model."
        )
    pieces = _pieces(selector)
    for piece in pieces:
        if not any(_matches(piece, block.name) for block in blocks):
            raise NoSuchSiteError(
                f"features: {piece!r} matches no convolutional or residual block of this model. It has: "
                f"{', '.join(block.name for block in blocks)}."
            )
    return [block for block in blocks if any(_matches(piece, block.name) for piece in pieces)]


def _pieces(selector: str) -> list[str]:
    return [piece.strip() for piece in selector.split(",") if piece.strip()]


def optional_sites(chosen: Sequence[Site], selector: str) -> frozenset[str]:
    """Of the sites that ``selector`` chose, the names of those that a run need not reach: they need an input that it
    may lack, and no piece of ``selector`` names such sites alone."""
    needy = [site for site in chosen if site.needs]
    named: set[str] = set()
    for piece in _pieces(selector):
        of_piece = [site for site in chosen if piece == site.kind or _matches(piece, site.name)]
        if all(site.needs for site in of_piece):
            named |= {site.name for site in of_piece}
    return frozenset(site.name for site in needy if site.name not in named)


def _matches(piece: str, name: str) -> bool:
    wanted, components = piece.split("."), name.split(".")
    return len(wanted) <= len(components) and all(map(_component_matches, wanted, components))


def _component_matches(wanted: str, component: str) -> bool:
    span = re.fullmatch(r"(\d+)-(\d+)", wanted)
    if span and component.isdigit():
        return int(span[1]) <= int(component) <= int(span[2])
    return wanted in ("*", component)


def _example(name: str) -> str:
    """``output.0-8`` of ``output.8.attn1``."""
    part, number, *_ = name.split(".")
    return f"{part}.0-{number}"
