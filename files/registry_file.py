"""Attention registries as JSON: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from ..attention.registry import (
    AttentionRegistry,
    By,
    Choice,
    Figures,
    Layer,
    Measurement,
    Order,
    Precision,
    Ranking,
)
from ..attention.sites import Kind
from ..techniques.entropy import Energy
from .json_forms import JsonForm, fitted, read_json, shown
from .whole import read_bytes, write_whole

FORMAT, VERSION = "coherence attention registry", 1
SUFFIX = ".attention.json"
MAX_BYTES = 4 * 2**20  # some 9,000 layers
MAX_COUNT = 2**64 - 1

Count: TypeAlias = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Amount: TypeAlias = Annotated[float, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class RegistryFileError(ValueError):
    """A file is no attention registry; the text says where and why."""


# The form -------------------------------------------------------------------------------------------------------


class NamedSite(JsonForm):
    name: Annotated[str, Field(min_length=1)]
    order: Count
    kind: Kind
    heads: Positive
    selected: bool
    damage: float | None = None
    selected_heads: list[Count] | None = None

    def figures(self) -> Figures | None:
        return None

    def layer(self) -> Layer:
        heads = None if self.selected_heads is None else tuple(self.selected_heads)
        return Layer(self.name, self.order, self.kind, self.heads, self.figures(), self.selected, self.damage, heads)


class MeasuredSite(NamedSite):
    tokens: Positive
    keys: Positive
    entropy: Share
    entropy_half_width: Amount
    energy: Amount
    energy_uniform: Amount
    energy_identity: Amount
    entropy_by_head: list[Share] = Field(default_factory=list)
    entropy_by_step: list[Share] = Field(default_factory=list)

    def figures(self) -> Figures:
        energy = Energy(self.energy, self.energy_uniform, self.energy_identity)
        heads, steps = tuple(self.entropy_by_head), tuple(self.entropy_by_step)
        return Figures(self.tokens, self.keys, self.entropy, self.entropy_half_width, energy, heads, steps)


class MeasurementForm(JsonForm):
    steps: Annotated[list[Count], Field(min_length=1)]
    sigmas: list[Amount]
    precision: Precision
    seed: Count
    latent_shape: list[Positive]

    def measurement(self) -> Measurement:
        shape = tuple(self.latent_shape)
        return Measurement(tuple(self.steps), tuple(self.sigmas), self.precision, self.seed, shape)


class RankingForm(JsonForm):
    kind: Choice
    select: Order
    count: Count
    percent: Annotated[float, Field(ge=0, le=100)]
    by: By = "entropy"
    live: bool = False
    per_head: bool = False

    def ranking(self) -> Ranking:
        return Ranking(self.kind, self.select, self.count, self.percent, self.by, self.live, self.per_head)


class RegistryForm(JsonForm):
    model: str
    network: str
    measurement: MeasurementForm | None
    selection: dict[str, Any] | str
    sites: list[dict[str, Any]]


# Writing and reading --------------------------------------------------------------------------------------------


def to_json(registry: AttentionRegistry) -> str:
    """All of ``registry`` as JSON (schema version 1); energies carry their proportion, for people to read."""
    measurement, selection = registry.measurement, registry.selection
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": registry.model,
        "network": registry.network,
        "measurement": None if measurement is None else asdict(measurement),
        "selection": selection if isinstance(selection, str) else asdict(selection),
        "sites": [_site_entry(layer) for layer in registry.layers],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _site_entry(layer: Layer) -> dict[str, Any]:
    entry = {name: getattr(layer, name) for name in ("name", "order", "kind", "heads", "selected")}
    if (figures := layer.figures) is not None:
        entry |= {
            "tokens": figures.tokens,
            "keys": figures.keys,
            "entropy": figures.entropy,
            "entropy_half_width": figures.half_width,
            "energy": figures.energy.attention,
            "energy_uniform": figures.energy.uniform,
            "energy_identity": figures.energy.identity,
            "energy_proportion": figures.energy.proportion,
            "entropy_by_head": list(figures.heads),
            "entropy_by_step": list(figures.by_step),
        }
    if layer.damage is not None:
        entry["damage"] = layer.damage
    if layer.selected_heads is not None:
        entry["selected_heads"] = list(layer.selected_heads)
    return entry


def from_json(text: str) -> AttentionRegistry:
    """The registry that :func:`to_json` wrote; RegistryFileError where it is anything else."""
    try:
        return _read(read_json(text))
    except RegistryFileError:
        raise
    except ValueError as error:
        raise RegistryFileError(str(error)) from error


def _read(content: Any) -> AttentionRegistry:
    if not isinstance(content, dict):
        raise RegistryFileError(f"the file: expected an object, got {shown(content)}")
    # before all else: a later version may have another form
    for name, expected, cure in (("format", FORMAT, ""), ("version", VERSION, "; update the pack, or measure again")):
        if name not in content:
            raise RegistryFileError(f"the file: {name!r} is missing")
        if type(content[name]) is not type(expected) or content[name] != expected:
            raise RegistryFileError(f"{name}: expected {expected!r}, got {shown(content[name])}{cure}")
    form = fitted(RegistryForm, content)
    layers = tuple(
        fitted(MeasuredSite if "entropy" in site else NamedSite, site, f"sites[{place}]").layer()
        for place, site in enumerate(form.sites)
    )
    chosen = form.selection
    selection = chosen if isinstance(chosen, str) else fitted(RankingForm, chosen, "selection").ranking()
    for place, layer in enumerate(layers):
        if layer.order != place:
            raise RegistryFileError(
                f"sites[{place}]: order: expected {place}, its place in the list, got {layer.order}"
            )
    if len({layer.name for layer in layers}) < len(layers):
        raise RegistryFileError("sites: a name occurs twice")
    for place, layer in enumerate(layers):
        _require_heads(place, layer)
    if {layer.figures is not None for layer in layers} - {form.measurement is not None}:
        raise RegistryFileError("sites: expected figures at all of them if there is a measurement, at none otherwise")
    if form.measurement and len(form.measurement.steps) != len(form.measurement.sigmas):
        raise RegistryFileError(
            f"measurement: expected a sigma for each step, got {len(form.measurement.steps)} steps, "
            f"{len(form.measurement.sigmas)} sigmas"
        )
    return AttentionRegistry(
        model=form.model,
        network=form.network,
        layers=layers,
        selection=selection,
        measurement=None if form.measurement is None else form.measurement.measurement(),
    )


def _require_heads(place: int, layer: Layer) -> None:
    if layer.figures is not None and len(layer.figures.heads) not in (0, layer.heads):
        raise RegistryFileError(
            f"sites[{place}]: entropy_by_head: expected {layer.heads} numbers, one for each head, got "
            f"{len(layer.figures.heads)}"
        )
    chosen = layer.selected_heads
    if chosen is not None and (not layer.selected or not chosen or max(chosen) >= layer.heads):
        raise RegistryFileError(
            f"sites[{place}]: selected_heads: expected some of 0 to {layer.heads - 1} of a selected layer, got "
            f"{shown(list(chosen))}"
        )


def save(registry: AttentionRegistry, path: Path) -> None:
    """Write ``registry`` to ``path``: a reader, or a crash, finds all of it or nothing."""
    content = to_json(registry).encode()
    if len(content) > MAX_BYTES:
        raise RegistryFileError(
            f"The registry cannot be saved: expected at most {MAX_BYTES:,} bytes, got {len(content):,}"
        )
    write_whole([content], path)


def load(path: Path) -> AttentionRegistry:
    """The registry in the file ``path``; RegistryFileError says what is wrong with it."""
    try:
        return from_json(read_bytes(path, MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        raise RegistryFileError(
            f"{path.name} cannot be loaded: {error}. Choose a file that SaveAttentionRegistry wrote."
        ) from error
