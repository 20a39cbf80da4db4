"""What AnimateDiff-Evolved's own sampling function does in a step, for guiders that do not go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .told import meanwhile


@dataclass(frozen=True)
class AnimateDiff:
    """Its settings in a step. ``custom``: its Custom CFG, which comes before the cfg of whoever samples."""

    custom: Any = None

    @classmethod
    @contextmanager
    def step(cls, model: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> Iterator[AnimateDiff]:
        """A step of one clip ``x`` with these model options; they are as its sampling function gives them."""
        transformer_options = options.get("transformer_options", {})
        state = transformer_options.get("ADGS")
        if state is None:
            yield cls()
            return
        state.initialize(model, options)
        state.prepare_current_keyframes(x=x, timestep=sigma, transformer_options=transformer_options)
        with meanwhile(transformer_options, ad_params=state.create_exposed_params()):
            yield cls(getattr(getattr(state, "sample_settings", None), "custom_cfg", None))

    def scale_or(self, cfg: float) -> float | Tensor:
        """The scale of guidance, as set: ``cfg``, or what Custom CFG has instead."""
        return cfg if self.custom is None else self.custom.cfg_multival

    def scaled(self, positive: Tensor, cfg: float) -> float | Tensor:
        """The scale of guidance of a clip with this prediction."""
        return cfg if self.custom is None else self.custom.get_cfg_scale(positive)

    @property
    def adapted(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """How model options become those that guidance is made with."""
        return None if self.custom is None else self.custom.get_model_options
