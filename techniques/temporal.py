"""Temporal attention: every position of a clip attends to the same position in the other frames.

``TemporalAttention`` is Tune-A-Video's (arXiv 2212.11565, §4.2), the baseline of EI²: after a transformer layer's
feed-forward, z + W_o·Attention(LN(z)) over frames, W_o = 0 before training. It has no notion of order. With
``ordered`` it is told the frames' numbers (a sinusoidal code, as AnimateDiff's) and followed by a feed-forward of its
own, which can bring words and frame numbers together: a model of motion needs both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def over_frames(z: Tensor, frames: int) -> Tensor:
    """(clips · frames, tokens, channels) → (clips · tokens, frames, channels)."""
    return z.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)


def over_tokens(z: Tensor, tokens: int) -> Tensor:
    """The way back: (clips · tokens, frames, channels) → (clips · frames, tokens, channels)."""
    return z.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
    """Softmax attention on (rows, tokens, heads · width), in the way ComfyUI's attention functions are called."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def frame_code(frames: Tensor, width: int) -> Tensor:
    """Sines and cosines of the frames' numbers (F,), (F, width): wavelengths from 2π to 20,000π frames."""
    rates = torch.exp(torch.arange(0, width, 2, device=frames.device) * (-math.log(10_000.0) / width))
    angles = frames.float()[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class TemporalAttention(nn.Module):
    """``attention``: as :func:`attend`. ``operations``: whose ``Linear`` and ``LayerNorm`` to use."""

    def __init__(
        self,
        width: int,
        heads: int,
        ordered: bool = False,
        attention: Callable = attend,
        operations: Any = nn,
        **where: Any,
    ) -> None:
        super().__init__()
        self.heads, self.ordered, self.attention = heads, ordered, attention
        self.norm = operations.LayerNorm(width, **where)
        self.to_q, self.to_k, self.to_v = (operations.Linear(width, width, bias=False, **where) for _ in "qkv")
        self.to_out = operations.Linear(width, width, **where)
        if ordered:
            self.norm_ff = operations.LayerNorm(width, **where)
            self.ff_in = operations.Linear(width, 4 * width, **where)
            self.ff_out = operations.Linear(2 * width, width, **where)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Nothing is added yet: uniform weights as torch's, with zeros where a branch joins the trunk."""
        zero = (self.to_out, *([self.ff_out] if self.ordered else []))
        with torch.no_grad():
            module: Any
            for module in self.children():
                if isinstance(module, nn.LayerNorm):
                    module.weight.fill_(1.0)
                    module.bias.zero_()
                    continue
                bound = 0.0 if module in zero else module.in_features**-0.5
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, z: Tensor, frames: Sequence[int], transformer_options: Any = None) -> Tensor:
        """What is added to ``z`` (clips · F, tokens, width), frames inside; ``frames``: their F numbers in the clip."""
        x = over_frames(z, len(frames))
        code = frame_code(torch.tensor(frames, device=z.device), z.shape[-1]).to(z) if self.ordered else 0.0
        seen = self.norm(x) + code
        q, k, v = self.to_q(seen), self.to_k(seen), self.to_v(seen)
        added = self.to_out(self.attention(q, k, v, self.heads, transformer_options=transformer_options))
        if self.ordered:
            value, gate = self.ff_in(self.norm_ff(x + added) + code).chunk(2, dim=-1)
            added = added + self.ff_out(value * F.gelu(gate))
        return over_tokens(added, z.shape[1])
