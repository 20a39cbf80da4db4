"""Which tokens are alike: nearest neighbours by cosine, a part at a time, so that no N × N table is in memory."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**24
"""Similarities in memory."""


def unit(x: Tensor) -> Tensor:
    """``x`` (…, channels) over its norm, as its own type."""
    return torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype)


def nearest(source: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of every one of ``source`` (n, channels), unit vectors, the largest cosine to ``others`` (m, channels), and which
    that is."""
    parts = [(part @ others.T).max(dim=-1) for part in source.split(max(1, _AT_ONCE // len(others)))]
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def taken(x: Tensor, indices: Tensor) -> Tensor:
    """Of each row of ``x`` (rows, …, tokens, channels) the tokens that ``indices`` (rows, n) name; copied whole,
    where ``gather`` would read an index for every channel."""
    return torch.stack([row.index_select(-2, chosen) for row, chosen in zip(x, indices, strict=True)])
