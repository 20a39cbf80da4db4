"""Reports as JSON, which knows numbers alone: what could not be measured is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def to_json(report: Mapping[str, Any], indent: int | None = None) -> str:
    """``report`` with lists for tensors, and null for NaN and infinity."""
    return json.dumps(_plain(report), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
