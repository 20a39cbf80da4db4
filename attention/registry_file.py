"""Attention registries as JSON: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from .entropy import Energy
from .registry import CHOICES, ORDERS, PRECISIONS, AttentionRegistry, Figures, Layer, Measurement, Ranking
from .safe_files import read_bytes, read_json, shown, write_whole
from .sites import Kind

FORMAT, VERSION = "coherence attention registry", 1
SUFFIX = ".attention.json"
MAX_BYTES = 4 * 2**20  # some 9,000 layers
MAX_COUNT = 2**64 - 1


class RegistryFileError(ValueError):
    """A file is no attention registry; the text says where and why."""


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
        "sites": [_layer_entry(layer) for layer in registry.layers],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _layer_entry(layer: Layer) -> dict[str, Any]:
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
        }
    return entry


def from_json(text: str) -> AttentionRegistry:
    """The registry that :func:`to_json` wrote; RegistryFileError where it is anything else."""
    try:
        content = read_json(text)
    except ValueError as error:
        raise RegistryFileError(str(error)) from error
    root = _Entry(content, "the file")
    if root.get("format", str) != FORMAT:
        raise RegistryFileError(f"format: expected {FORMAT!r}, got {shown(root.get('format', str))}")
    if (version := root.get("version", int)) != VERSION:
        raise RegistryFileError(f"version: expected {VERSION}, got {shown(version)}; update the pack, or measure again")
    layers = tuple(_read_layer(_Entry(entry, f"sites[{i}]"), i) for i, entry in enumerate(root.get("sites", list)))
    if len({layer.name for layer in layers}) < len(layers):
        raise RegistryFileError("sites: a name occurs twice")
    measurement = root.get("measurement", dict | None)
    measured = {layer.figures is not None for layer in layers}
    if measured - {measurement is not None}:
        raise RegistryFileError("sites: expected figures at all of them if there is a measurement, at none otherwise")
    return AttentionRegistry(
        model=root.get("model", str),
        network=root.get("network", str),
        layers=layers,
        selection=_read_selection(root.get("selection", dict | str)),
        measurement=None if measurement is None else _read_measurement(_Entry(measurement, "measurement")),
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


# Reading -------------------------------------------------------------------------------------------------------


class _Entry:
    """A JSON object whose values are checked as they are taken; errors say where they stand."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise RegistryFileError(f"{place}: expected an object, got {shown(value)}")
        self._value, self._place = value, place

    def has(self, name: str) -> bool:
        return name in self._value

    def get(self, name: str, kind: Any, fits: Callable[[Any], bool] = lambda _: True, expected: str = "") -> Any:
        if not self.has(name):
            raise RegistryFileError(f"{self._place}: {name!r} is missing")
        value = self._value[name]
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**1023 else math.inf
        # bool is an int to isinstance.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not fits(value):
            wanted = expected or getattr(kind, "__name__", str(kind))
            raise RegistryFileError(f"{self._place}: {name}: expected {wanted}, got {shown(value)}")
        return value

    def number(self, name: str, low: float = 0.0, high: float = math.inf) -> float:
        span = f"a number of at least {low}" if high == math.inf else f"a number from {low} to {high}"
        return self.get(name, float, lambda x: math.isfinite(x) and low <= x <= high, span)

    def count(self, name: str, low: int = 0) -> int:
        return self.get(name, int, lambda x: low <= x <= MAX_COUNT, f"a whole number from {low} to {MAX_COUNT}")

    def one_of(self, name: str, options: tuple[str, ...]) -> Any:
        return self.get(name, str, lambda x: x in options, f"one of {', '.join(options)}")

    def each(self, name: str, kind: type, low: float = 0.0) -> tuple:
        values = self.get(name, list)
        place = f"{self._place}.{name}"
        if kind is int:
            return tuple(_Entry({str(i): x}, place).count(str(i), int(low)) for i, x in enumerate(values))
        return tuple(_Entry({str(i): x}, place).number(str(i), low) for i, x in enumerate(values))


def _read_layer(entry: _Entry, order: int) -> Layer:
    return Layer(
        name=entry.get("name", str, bool, "a name"),
        order=entry.get("order", int, lambda x: x == order, f"{order}, its place in the list"),
        kind=entry.one_of("kind", get_args(Kind)),
        heads=entry.count("heads", 1),
        figures=_read_figures(entry) if entry.has("entropy") else None,
        selected=entry.get("selected", bool),
    )


def _read_figures(entry: _Entry) -> Figures:
    return Figures(
        tokens=entry.count("tokens", 1),
        keys=entry.count("keys", 1),
        entropy=entry.number("entropy", 0.0, 1.0),
        half_width=entry.number("entropy_half_width"),
        energy=Energy(entry.number("energy"), entry.number("energy_uniform"), entry.number("energy_identity")),
    )


def _read_measurement(entry: _Entry) -> Measurement:
    steps, sigmas = entry.each("steps", int), entry.each("sigmas", float)
    if not steps or len(steps) != len(sigmas):
        raise RegistryFileError(
            f"measurement: expected a sigma for each step, at least one, got {len(steps)} steps, {len(sigmas)} sigmas"
        )
    return Measurement(
        steps=steps,
        sigmas=sigmas,
        precision=entry.one_of("precision", PRECISIONS),
        seed=entry.count("seed"),
        latent_shape=entry.each("latent_shape", int, 1),
    )


def _read_selection(value: dict | str) -> Ranking | str:
    if isinstance(value, str):
        return value
    entry = _Entry(value, "selection")
    return Ranking(
        kind=entry.one_of("kind", CHOICES),
        select=entry.one_of("select", ORDERS),
        count=entry.count("count"),
        percent=entry.number("percent", 0.0, 100.0),
    )
