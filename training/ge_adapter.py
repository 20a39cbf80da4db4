"""A trained GE-Adapter: LoRA weights, shared tokens, the projection of per-frame tokens, and what they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .frame_tokens import frame_tokens, initial_projection, initial_shared_tokens
from .low_rank import Layers, attention_projections, initial_lora, pairs_of

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

Option = int | float | str | bool


@dataclass(frozen=True)
class Training:
    """Where an adapter comes from.

    ``base``: class of the model, such as ``BaseModel``; ``layers``: which blocks have a LoRA; ``frames``: length of
    the clips; ``steps``: how many were trained; ``options``: the others, by name (learning rate, weights, seed, ...).
    """

    base: str
    layers: Layers
    frames: int
    steps: int
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GEAdapter:
    """``lora``: tensors by their names in LoRA files (:mod:`.low_rank`); ``shared_tokens``: (count, width of the text);
    ``projection``: weight (text, vision) and bias (text,) of the per-frame tokens, None for an adapter without.

    ValueError where their shapes disagree.
    """

    lora: Mapping[str, Tensor]
    shared_tokens: Tensor
    projection: tuple[Tensor, Tensor] | None
    training: Training

    def __post_init__(self) -> None:
        pairs = pairs_of(self.lora)
        if len({len(down) for down, _, _ in pairs.values()}) != 1:
            raise ValueError("LoRA: expected projections of one rank, got none or several ranks")
        if self.shared_tokens.ndim != 2:
            raise ValueError(f"shared tokens: expected (count, width), got {tuple(self.shared_tokens.shape)}")
        if self.projection is not None:
            weight, bias = (tuple(each.shape) for each in self.projection)
            if len(weight) != 2 or weight[:1] != bias or bias != (self.text_width,):
                raise ValueError(
                    f"projection: expected a weight ({self.text_width}, vision width) and a bias "
                    f"({self.text_width},), got {weight} and {bias}"
                )

    @property
    def rank(self) -> int:
        down, _, _ = next(iter(pairs_of(self.lora).values()))
        return len(down)

    @property
    def text_width(self) -> int:
        return self.shared_tokens.shape[1]

    @property
    def vision_width(self) -> int | None:
        return None if self.projection is None else self.projection[0].shape[1]

    def tokens_of(self, hidden: Tensor) -> Tensor:
        """Z_unshare (frames, ⌊N/2⌋, text width) of CLIP-vision hidden states (frames, N, vision width).

        ValueError where the adapter has no projection, or one of another width.
        """
        if self.projection is None:
            raise ValueError(
                "This adapter was trained without per-frame tokens. Leave clip_vision_output empty, or train with it."
            )
        if hidden.ndim != 3 or hidden.shape[-1] != self.vision_width:
            raise ValueError(
                f"clip_vision_output: expected hidden states of width {self.vision_width}, as in training, got "
                f"{' × '.join(map(str, hidden.shape))}. Encode with the CLIP vision model of the training."
            )
        return frame_tokens(hidden, *(each.to(hidden) for each in self.projection))

    def parameters(self) -> dict[str, int]:
        """How many numbers were learned, part by part."""
        return {
            "lora": sum(down.numel() + up.numel() for down, up, _ in pairs_of(self.lora).values()),
            "shared tokens": self.shared_tokens.numel(),
            "projection": sum(each.numel() for each in self.projection or ()),
        }


def untrained(
    base_model: BaseModel,
    layers: Layers,
    rank: int,
    shared_tokens: int,
    text_width: int,
    vision_width: int | None,
    frames: int,
    seed: int,
    options: Mapping[str, Option] | None = None,
) -> GEAdapter:
    """The adapter that training begins with: B = 0, shared tokens from N(0, 0.02); the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return GEAdapter(
        lora=initial_lora(attention_projections(base_model, layers), rank, generator),
        shared_tokens=initial_shared_tokens(shared_tokens, text_width, generator),
        projection=None if vision_width is None else initial_projection(vision_width, text_width, generator),
        training=Training(type(base_model).__name__, layers, frames, 0, options or {}),
    )
