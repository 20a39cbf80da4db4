"""Entropy and energy of every attention layer, and the layers chosen by them: IE-Adapt's register (§3, Eq. 3).

:class:`AttentionRegistry` holds what :mod:`.recorder` measured: the layers of a model in order, their figures, and
which of them, or of their heads, are selected. It is immutable; :func:`reselect` makes another one from the same
figures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from ..techniques.choice import ALL_HEADS, Live, SomeHeads
from ..techniques.choice import Choice as Where
from ..techniques.entropy import Energy
from .sites import Kind, Site, network_of, sites_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Choice = Literal["all", "spatial", "temporal", "joint"]
Order = Literal["highest", "lowest"]
By = Literal["entropy", "damage"]
Precision = Literal["exact", "sampled"]
CHOICES, ORDERS, PRECISIONS = get_args(Choice), get_args(Order), get_args(Precision)
SELECTABLE: tuple[Kind, ...] = ("spatial", "temporal", "joint")
"""Not cross-attention: its map has no identity to be replaced by, its entropy is over words. Not the prompt's own."""


class RegistryError(ValueError):
    """A registry does not fit the request."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one layer: means over heads, rows of the map, frames, and the measured steps.

    ``tokens`` and ``keys`` are N_q and N_k of the largest map; ``entropy`` is in [0, 1]; ``half_width`` is that of its
    95% interval, 0 where every row was measured. ``heads``: the entropy of each head; ``by_step``: at each measured
    step. Both are empty in files from before they were kept.
    """

    tokens: int
    keys: int
    entropy: float
    half_width: float
    energy: Energy
    heads: tuple[float, ...] = ()
    by_step: tuple[float, ...] = ()


@dataclass(frozen=True)
class Layer:
    """An attention layer in a registry: of :class:`.sites.Site` what outlives the model, and its figures, if any.

    ``damage``: what became worse without its map, larger for worse, where a sweep has tried (LayerSweep).
    ``selected_heads``: those of a selected layer where heads are chosen one by one; None for all of them.
    """

    name: str
    order: int
    kind: Kind
    heads: int
    figures: Figures | None
    selected: bool
    damage: float | None = None
    selected_heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Ranking:
    """Choose layers by a figure: the ``count`` highest or lowest of a kind, or ``percent`` of them where count is 0.

    ``per_head``: choose heads in place of layers. ``live``: rank anew at every step of a run, by the entropies of the
    step before (:class:`..techniques.choice.Live`); what is selected here is for the first step.
    """

    kind: Choice = "all"
    select: Order = "highest"
    count: int = 1
    percent: float = 50.0
    by: By = "entropy"
    live: bool = False
    per_head: bool = False

    def number_of(self, candidates: int) -> int:
        """How many of ``candidates`` are chosen: at least one, where there is any."""
        return self.count or max(1, math.floor(candidates * self.percent / 100))


@dataclass(frozen=True)
class Measurement:
    """How the figures came about. ``steps`` are counted from 0, ``sigmas`` the noise levels there."""

    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    precision: Precision
    seed: int
    latent_shape: tuple[int, ...]


@dataclass(frozen=True)
class AttentionRegistry:
    """A model's attention layers, some of them selected.

    ``model`` and ``network`` name ComfyUI's classes; ``selection`` is the ranking, or the text the user wrote.
    """

    model: str
    network: str
    layers: tuple[Layer, ...]
    selection: Ranking | str
    measurement: Measurement | None = None

    @property
    def selected(self) -> tuple[str, ...]:
        """The names of the selected layers, in order."""
        return tuple(layer.name for layer in self.layers if layer.selected)

    @property
    def selector(self) -> str:
        """The selected layers as :func:`.sites.select_sites` and :func:`.tap.tap` take them."""
        return ", ".join(self.selected)


def model_names(model: ModelPatcher) -> tuple[str, str]:
    """A registry's ``model`` and ``network``."""
    return type(model.model).__name__, network_of(model)


def require_model(registry: AttentionRegistry, model: ModelPatcher, asked_by: str) -> None:
    """RegistryError if ``registry`` is of another model, or selects layers that ``model`` does not have.

    Other nodes may add or remove layers; if those are not selected, a warning in the log is enough. UnknownModelError
    as in :mod:`.sites`.
    """
    sites = {site.name: site for site in sites_of(model)}
    (kind, network), cure = model_names(model), "Measure this model with EntropyRegister, or name its layers."
    # a compiled model's network was once written down as OptimizedModule
    if registry.model != kind or registry.network not in (network, "OptimizedModule"):
        raise RegistryError(
            f"{asked_by}: the registry is of another model: {registry.model[:60]} ({registry.network[:60]}), this one "
            f"is {kind} ({network}). {cure}"
        )
    for layer in registry.layers:
        site = sites.get(layer.name)
        if site is not None and (site.kind, site.heads) != (layer.kind, layer.heads):
            raise RegistryError(
                f"{asked_by}: the registry is of another {kind}: {layer.name} has {layer.heads} heads of {layer.kind} "
                f"attention there, and {site.heads} of {site.kind} attention in this model. {cure}"
            )
    if missing := [name for name in registry.selected if name not in sites]:
        raise RegistryError(
            f"{asked_by}: this model does not have {_some(missing)}, which the registry selects. If another node adds "
            f"them, such as AnimateDiff's loader or STAMInflate, put it before this one. Otherwise: {cure}"
        )
    known = {layer.name for layer in registry.layers}
    more = [name for name, site in sites.items() if name not in known and not site.needs]
    fewer = [name for name in known if name not in sites]
    if more or fewer:
        logging.warning(
            "%s: the registry was made on a %s with other layers. Added here: %s; missing here: %s. All selected "
            "layers exist.",
            asked_by,
            kind,
            _some(more),
            _some(sorted(fewer)),
        )


def _some(names: list[str]) -> str:
    shown = [name[:60] for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} others" if len(names) > 3 else "") or "none"


def _require_selected(model: ModelPatcher, registry: AttentionRegistry, asked_by: str) -> None:
    require_model(registry, model, asked_by)
    if not registry.selected:
        raise RegistryError(
            f"{asked_by}: the registry selects no layer, expected at least one. Connect one from EntropyRegister or "
            "SelectAttentionLayers, or choose layers again with ReselectAttentionLayers."
        )


def choice_if_any(model: ModelPatcher, registry: AttentionRegistry, asked_by: str) -> tuple[str, Where]:
    """As :func:`choice_for`, but a registry that selects none gives no layers."""
    if registry.selected:
        return choice_for(model, registry, asked_by)
    require_model(registry, model, asked_by)
    return "", ALL_HEADS


def choice_for(model: ModelPatcher, registry: AttentionRegistry, asked_by: str) -> tuple[str, Where]:
    """The layers of ``model`` to put a technique on, for :func:`.tap.tap`, and at which of their heads it acts.

    RegistryError where it selects none, or as in :func:`require_model`.
    """
    _require_selected(model, registry, asked_by)
    selector, ranking = registry.selector, registry.selection
    if not isinstance(ranking, Ranking) or not (ranking.live or ranking.per_head):
        return selector, ALL_HEADS
    heads = {
        layer.name: frozenset(range(layer.heads) if layer.selected_heads is None else layer.selected_heads)
        for layer in registry.layers
        if layer.selected
    }
    if not ranking.live:
        return selector, SomeHeads(heads)
    there = {site.name for site in sites_of(model)}
    eligible = [layer for layer in _of_kind(registry.layers, ranking) if layer.name in there]
    candidates = sum(layer.heads for layer in eligible) if ranking.per_head else len(eligible)
    live = Live(ranking.number_of(candidates), ranking.select == "highest", heads, ranking.per_head)
    return ", ".join(layer.name for layer in eligible), live


def named_registry(
    model: str, network: str, sites: Iterable[Site], chosen: Iterable[Site], text: str
) -> AttentionRegistry:
    """The registry of layers that the user named: no figures. ``text`` is the selector that chose them."""
    names = {site.name for site in chosen}
    return AttentionRegistry(model, network, tuple(_layer(s, None, s.name in names) for s in sites), text)


def ranked_registry(
    model: str,
    network: str,
    sites: Iterable[Site],
    figures: dict[str, Figures],
    ranking: Ranking,
    measurement: Measurement,
) -> AttentionRegistry:
    """The registry of the ``sites`` that were measured; ``figures`` by name. RegistryError as in :func:`rank`."""
    measured = (site for site in sites if site.name in figures)
    layers = tuple(replace(_layer(site, figures[site.name], False), order=n) for n, site in enumerate(measured))
    return reselect(AttentionRegistry(model, network, layers, ranking, measurement), ranking)


def swept_registry(registry: AttentionRegistry, damage: Mapping[str, float], ranking: Ranking) -> AttentionRegistry:
    """``registry`` with the ``damage`` of its layers by name, and what ``ranking`` selects of it. RegistryError as in
    :func:`rank`."""
    layers = tuple(replace(layer, damage=damage.get(layer.name)) for layer in registry.layers)
    return reselect(replace(registry, layers=layers), ranking)


def reselect(registry: AttentionRegistry, ranking: Ranking) -> AttentionRegistry:
    """The same figures, another selection. RegistryError as in :func:`rank`."""
    chosen = rank(registry.layers, ranking)
    layers = tuple(
        replace(layer, selected=layer.name in chosen, selected_heads=chosen.get(layer.name))
        for layer in registry.layers
    )
    return replace(registry, layers=layers, selection=ranking)


def rank(layers: Iterable[Layer], ranking: Ranking) -> dict[str, tuple[int, ...] | None]:
    """The names of the layers that ``ranking`` chooses, each with its chosen heads where it chooses heads, else None.
    Layers, or heads, that are equal by their order in the model.

    ⌊n·percent/100⌋ of the n layers of the kind, or of their heads, but at least one; ``all`` is every SELECTABLE kind.

    Raises:
        RegistryError: the layers were not measured, none is of that kind, or there are fewer than ``count``.
    """
    layers = tuple(layers)
    eligible = _of_kind(layers, ranking)
    if not eligible:
        kinds = ", ".join(sorted({layer.kind for layer in layers})) or "no attention"
        raise RegistryError(f"kind: the model has no {ranking.kind} self-attention layer, only {kinds}. Choose 'all'.")
    if ranking.by == "damage":
        if ranking.live or ranking.per_head:
            raise RegistryError(
                "The registry ranks by damage, which is measured for whole layers over a whole run. Turn live and "
                "per_head off, or rank by entropy."
            )
        eligible = [layer for layer in eligible if layer.damage is not None]  # a sweep may try some layers only
    candidates = [(value, layer.order, head, layer) for layer in eligible for head, value in _figures(layer, ranking)]
    if not candidates or len({layer.name for *_, layer in candidates}) < len(eligible):
        raise RegistryError(_UNRANKED[ranking.by])
    number = ranking.number_of(len(candidates))
    if number > len(candidates):
        of_kind = "" if ranking.kind == "all" else f"{ranking.kind} "
        what, has = ("heads", "heads in ") if ranking.per_head else ("layers", "")
        raise RegistryError(
            f"count: {number} {what} asked for, but the model has {len(candidates)} {has}{of_kind}self-attention "
            "layers. Lower count, or set it to 0 and use percent."
        )
    sign = -1 if ranking.select == "highest" else 1
    candidates.sort(key=lambda each: (sign * each[0], *each[1:3]))
    chosen: dict[str, tuple[int, ...] | None] = {}
    for _, _, head, layer in candidates[:number]:
        chosen[layer.name] = tuple(sorted((*(chosen.get(layer.name) or ()), head))) if ranking.per_head else None
    return chosen


_UNRANKED: dict[By, str] = {
    "entropy": "The registry holds layers that were named, not measured: they have no entropy to rank by. "
    "Connect a registry that EntropyRegister made.",
    "damage": "The registry holds no layers that were perturbed: they have no damage to rank by. Connect a registry "
    "that LayerSweep made, or rank by entropy.",
}


def _of_kind(layers: Iterable[Layer], ranking: Ranking) -> list[Layer]:
    return [each for each in layers if each.kind in SELECTABLE and ranking.kind in ("all", each.kind)]


def _figures(layer: Layer, ranking: Ranking) -> Iterable[tuple[int, float]]:
    """What a layer is ranked by; of each head with its number, else once. Empty where it was not measured."""
    if ranking.by == "damage":
        return [] if layer.damage is None else [(0, layer.damage)]
    if layer.figures is None:
        return []
    return enumerate(layer.figures.heads) if ranking.per_head else [(0, layer.figures.entropy)]


def _layer(site: Site, figures: Figures | None, selected: bool) -> Layer:
    return Layer(site.name, site.order, site.kind, site.heads, figures, selected)
