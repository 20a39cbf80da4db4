"""Figures to compare runs by: their time, numbers in the JSON that nodes showed, how steady their clips are."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .pictures import steadiness

Json = dict[str, Any]
SECONDS, STEADINESS = "seconds", "SSIM of neighbouring frames"


def figures_of(record: Json, folder: Path) -> dict[str, float]:
    """All figures of a finished run, by name."""
    found = {SECONDS: record["seconds"]}
    for file in record["files"]:
        if file["kind"] == "output" and (value := steadiness(folder / file["path"])) is not None:
            found[STEADINESS] = value
            break
    for name, text in record["texts"].items():
        found |= {f"{name}: {part}" if part else name: number for part, number in numbers_in(text)}
    return found


def numbers_in(text: str) -> Iterator[tuple[str, float]]:
    """Names and values of the numbers in a text that is JSON: a list of numbers counts as its mean."""
    try:
        yield from _numbers(json.loads(text), ())
    except ValueError:
        return  # prose


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        if isinstance(value.get("mean"), Mapping):  # it sums up the lists beside it
            value = value["mean"] | {n: x for n, x in value.items() if n != "mean" and isinstance(x, Mapping)}
        for name, each in value.items():
            yield from _numbers(each, (*path, str(name)))
    elif isinstance(value, list):
        known = [each for each in value if _is_number(each)]
        if known and len(known) == sum(each is not None for each in value):
            yield " ".join(path), sum(known) / len(known)
    elif _is_number(value):
        yield " ".join(path), float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
