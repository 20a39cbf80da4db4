"""Entropy and energy of every attention layer, and the layers chosen by them: IE-Adapt's register (§3, Eq. 3).

:class:`EntropyRecorder` sits on the tap, measures every layer's map while the model runs and changes nothing.
:class:`AttentionRegistry` holds the result: the layers of a model in order, their figures, and which of them are
selected. It is immutable; :func:`reselect` makes another one from the same figures.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from ..techniques.entropy import Energy, measure
from ..techniques.technique import AttentionCall, Proceed, Stage, Technique
from .sites import Kind, Site, network_of, sites_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Choice = Literal["all", "spatial", "temporal", "joint"]
Order = Literal["highest", "lowest"]
By = Literal["entropy", "damage"]
Precision = Literal["exact", "sampled"]
CHOICES, ORDERS, BYS, PRECISIONS = get_args(Choice), get_args(Order), get_args(By), get_args(Precision)
SELECTABLE: tuple[Kind, ...] = ("spatial", "temporal", "joint")
"""Not cross-attention: its map has no identity to be replaced by, its entropy is over words. Not the prompt's own."""
SAMPLED_ROWS = 256


class RegistryError(ValueError):
    """A registry does not fit the request."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one layer: means over heads, rows of the map, frames, and the measured steps.

    ``tokens`` and ``keys`` are N_q and N_k of the largest map; ``entropy`` is in [0, 1]; ``half_width`` is that of its
    95% interval, 0 where every row was measured.
    """

    tokens: int
    keys: int
    entropy: float
    half_width: float
    energy: Energy


@dataclass(frozen=True)
class Layer:
    """An attention layer in a registry: of :class:`.sites.Site` what outlives the model, and its figures, if any.

    ``damage``: what became worse without its map, larger for worse, where a sweep has tried (LayerSweep).
    """

    name: str
    order: int
    kind: Kind
    heads: int
    figures: Figures | None
    selected: bool
    damage: float | None = None


@dataclass(frozen=True)
class Ranking:
    """Choose layers by a figure: the ``count`` highest or lowest of a kind, or ``percent`` of them where count is 0."""

    kind: Choice = "all"
    select: Order = "highest"
    count: int = 1
    percent: float = 50.0
    by: By = "entropy"


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


def selector_for(model: ModelPatcher, registry: AttentionRegistry, asked_by: str) -> str:
    """The layers of ``model`` that ``registry`` selects, for :func:`.tap.tap`.

    RegistryError where it selects none, or as in :func:`require_model`.
    """
    require_model(registry, model, asked_by)
    if not registry.selected:
        raise RegistryError(
            f"{asked_by}: the registry selects no layer, expected at least one. Connect one from EntropyRegister or "
            "SelectAttentionLayers, or choose layers again with ReselectAttentionLayers."
        )
    return registry.selector


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
    names = rank(registry.layers, ranking)
    layers = tuple(replace(layer, selected=layer.name in names) for layer in registry.layers)
    return replace(registry, layers=layers, selection=ranking)


def rank(layers: Iterable[Layer], ranking: Ranking) -> frozenset[str]:
    """The names of the layers that ``ranking`` chooses; layers that are equal by their order in the model.

    ⌊n·percent/100⌋ of the n layers of the kind, but at least one; ``all`` is every SELECTABLE kind.

    Raises:
        RegistryError: the layers were not measured, none is of that kind, or there are fewer than ``count``.
    """
    layers = tuple(layers)
    eligible = [x for x in layers if x.kind in SELECTABLE and ranking.kind in ("all", x.kind)]
    if not eligible:
        kinds = ", ".join(sorted({layer.kind for layer in layers})) or "no attention"
        raise RegistryError(f"kind: the model has no {ranking.kind} self-attention layer, only {kinds}. Choose 'all'.")
    ranked = {layer.name: value for layer in eligible if (value := _figure(layer, ranking.by)) is not None}
    if ranking.by == "damage":
        eligible = [layer for layer in eligible if layer.name in ranked]  # a sweep may try some layers only
    if not eligible or len(ranked) < len(eligible):
        raise RegistryError(_UNRANKED[ranking.by])
    number = ranking.count or max(1, math.floor(len(eligible) * ranking.percent / 100))
    if number > len(eligible):
        of_kind = "" if ranking.kind == "all" else f"{ranking.kind} "
        raise RegistryError(
            f"count: {number} layers asked for, but the model has {len(eligible)} {of_kind}self-attention layers. "
            "Lower count, or set it to 0 and use percent."
        )
    sign = -1 if ranking.select == "highest" else 1
    eligible.sort(key=lambda layer: (sign * ranked[layer.name], layer.order))
    return frozenset(layer.name for layer in eligible[:number])


_UNRANKED: dict[By, str] = {
    "entropy": "The registry holds layers that were named, not measured: they have no entropy to rank by. "
    "Connect a registry that EntropyRegister made.",
    "damage": "The registry holds no layers that were perturbed: they have no damage to rank by. Connect a registry "
    "that LayerSweep made, or rank by entropy.",
}


def _figure(layer: Layer, by: By) -> float | None:
    if by == "damage":
        return layer.damage
    return None if layer.figures is None else layer.figures.entropy


def _layer(site: Site, figures: Figures | None, selected: bool) -> Layer:
    return Layer(site.name, site.order, site.kind, site.heads, figures, selected)


# Measuring -----------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """Of one layer: Σ w·figure and Σ w over calls, w the number of rows of the map, so that splits do not matter."""

    weight: int = 0
    tokens: int = 0
    keys: int = 0
    entropy: float = 0.0
    half_width: float = 0.0
    energy: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(eq=False)
class EntropyRecorder(Technique):
    """The technique that measures every layer it is put on, while ``recording``, and lets it run unchanged.

    It stands last on the tap: it sees the map that the other techniques make. The energy is of what the layer returns,
    so a pack that replaces the attention inside is measured, too. ``on_layer`` is called after every layer, recorded
    or not. Of several attentions in one layer (a picture's and a text's keys) the mean over rows is taken; the
    half-width of a mean is at most the mean half-width, which is given.
    """

    precision: Precision = "exact"
    on_layer: Callable[[Site], None] = lambda site: None
    recording: bool = False
    stage = Stage.LOOK
    supports_chunks = True

    _sums: dict[str, _Sums] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        out = proceed(call.q, call.k, call.v)
        if self.recording:
            self._record(call, out)
        self.on_layer(call.site)
        return out

    def _record(self, call: AttentionCall, out: Tensor) -> None:
        q, k, v = call.per_head()
        measured = measure(
            q,
            k,
            v,
            out=call.per_head_output(out),
            scale=call.scale,
            mask=four_dimensional(call.mask),
            rows=SAMPLED_ROWS if self.precision == "sampled" else None,
        )
        weight, energy = q.shape[0] * q.shape[2], measured.energy
        figures = (measured.entropy.mean, energy.attention, energy.uniform, energy.identity)
        if not all(map(math.isfinite, figures)):
            raise RegistryError(
                f"Attention layer {call.site.name} gives no finite figures (entropy {figures[0]}, energy {figures[1]}) "
                f"in {q.dtype}, at the noise level {call.sigma:.5g}: its numbers overflow. Run the model in bf16 or "
                "fp32."
            )
        with self._lock:
            sums = self._sums.setdefault(call.site.name, _Sums())
            sums.weight += weight
            sums.tokens, sums.keys = max(sums.tokens, q.shape[2]), max(sums.keys, k.shape[2])
            sums.entropy += weight * measured.entropy.mean
            sums.half_width += weight * measured.entropy.half_width
            a, u, i = sums.energy
            sums.energy = (a + weight * energy.attention, u + weight * energy.uniform, i + weight * energy.identity)

    def figures(self, sites: Iterable[Site]) -> dict[str, Figures]:
        """What was measured of ``sites``, by name, without those that lacked the input that they need. RegistryError
        names others that did not run while recording."""
        missed = [site.name for site in sites if site.name not in self._sums and not site.needs]
        if missed:
            raise RegistryError(
                f"At the measured steps these attention layers did not run: {', '.join(missed)}. Measure other steps, "
                "or remove the node that skips them."
            )
        return {name: _mean(sums) for name, sums in self._sums.items()}


def four_dimensional(mask: Tensor | None) -> Tensor | None:
    """A mask as ComfyUI's attention takes it, (N_q, N_k) or (rows, N_q, N_k), as (rows, heads, N_q, N_k)."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask.unsqueeze(1) if mask.ndim == 3 else mask[None, None]


def _mean(sums: _Sums) -> Figures:
    energy = Energy(*(total / sums.weight for total in sums.energy))
    return Figures(sums.tokens, sums.keys, sums.entropy / sums.weight, sums.half_width / sums.weight, energy)
