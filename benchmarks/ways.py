"""The pack's techniques on any model, each with its usual settings, to be run beside plain sampling.

Whatever does not fit a model, such as attention across frames on a video transformer, raises the node's own error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, get_args

import torch
from harness import guided, pack
from torch import Tensor

KL, MU, SCALE = 0.02, 0.98, 2.0
PLAIN = "plain sampling"
Run = Callable[[], Any]


@dataclass(frozen=True)
class Subject:
    """A model, and what it is asked for: CONDITIONINGs of what it draws, of what that is edited into, and of the
    negative prompt, SIGMAS, how strongly to guide, the shape of a clip's latent, and whether its frames are the
    batch."""

    model: Any
    positive: list
    target: list
    negative: list
    sigmas: Tensor
    cfg: float
    shape: tuple[int, ...]
    draws_pictures: bool = True

    @property
    def empty(self) -> dict[str, Tensor]:
        return {"samples": torch.zeros(self.shape)}

    def noise(self, seed: int, kl: float | None = None) -> Any:
        """Independent from frame to frame, or dependency noise."""
        nodes = pack("nodes.noise")
        if kl is None:
            return nodes.VideoNoisePrior.execute(seed, "iid", 0.0).args[0]
        return nodes.DependencyNoise.execute(seed, kl, "", "generalised", "bisection", 1, 15).args[0]

    def sample(self, model: Any, noise: Any = None, positive: list | None = None, latent: Any = None) -> Tensor:
        """Latents by Euler's steps, from noise, or from noise on a LATENT."""
        start = latent or self.empty
        drawn = (noise or self.noise(0)).generate_noise(start)
        return guided(model, drawn, start["samples"], self.sigmas, positive or self.positive, self.negative, self.cfg)

    def registry(self, select: str = "highest", count: int = 1, steps: str = "0", **how: bool) -> Any:
        """Of EntropyRegister; 50% of the layers where ``count`` is 0."""
        return self.register(select, count, steps, **how)[0]

    def register(self, select: str, count: int, steps: str, **how: bool) -> tuple[Any, Any]:
        """Registry and chart."""
        start = self.positive, self.noise(0), self.sigmas, self.empty
        execute = pack("nodes.entropy_register").EntropyRegister.execute
        made = execute(self.model, *start, "all", select, count, 50.0, steps, "exact", **how)
        return made.args[0], made.args[1]

    @cached_property
    def highest(self) -> Any:
        return self.registry()

    @cached_property
    def lowest(self) -> Any:
        return self.registry("lowest", 0)

    def guided_by(self, guidance: str, scale: float = SCALE, registry: Any = None) -> Any:
        """The model with IE-Adapt's guidance."""
        how = registry or self.highest, guidance, scale
        return pack("nodes.guidance").IEGuidanceCFG.execute(self.model, *how).args[0]

    def edit(self, registry: Any, model: Any = None, **how: Any) -> tuple[Tensor, Tensor]:
        """Latents of an edit from the same noise, and of its source; ``how``: other inputs of EntropyGuidedEdit."""
        from comfy.samplers import sampler_object

        given: dict[str, Any] = {
            "model": model or self.model,
            "source": self.positive,
            "target": self.target,
            "negative": self.negative,
            "registry": registry,
            "noise": self.noise(0, KL),
            "sampler": sampler_object("euler"),
            "sigmas": self.sigmas,
            "latent_image": self.empty,
            "cfg": self.cfg,
            "source_cfg": self.cfg,
            "replace": "map",
        }
        edited, source = pack("nodes.editing").EntropyGuidedEdit.execute(**(given | how)).args
        return edited["samples"], source["samples"]

    def inverted(self, latent: dict[str, Tensor], positive: list) -> tuple[dict, Any]:
        """The noise of a clip, and its trajectory, by plain DDIM inversion."""
        settings = "none", 5, 1.0, 1.0, 0.5, True, 0
        execute = pack("nodes.inversion").BilateralDDIMInvert.execute
        noise, _, trajectory = execute(self.model, positive, 1.0, latent, self.sigmas, *settings).args
        return noise, trajectory


def ways(subject: Subject) -> dict[str, Callable[[], Run]]:
    """Name → what prepares it, and returns a run of it; the first is plain sampling."""
    model, sample = subject.model, subject.sample

    def tapped(module: str, node: str, *settings: Any, **more: Any) -> Run:
        made = getattr(pack(f"nodes.{module}"), node).execute(model, *settings, **more).args[0]
        return partial(sample, made)

    def across(keys: str) -> Callable[[], Run]:
        return lambda: tapped("cross_frame", "CrossFrameAttention", keys)

    def guidance(name: str, **how: bool) -> Callable[[], Run]:
        return lambda: partial(
            sample, subject.guided_by(name, registry=subject.registry(**how) if how else subject.highest)
        )

    def edited(*before: tuple[str, str]) -> Run:
        made = model
        for module, node in before:
            made = getattr(pack(f"nodes.{module}"), node).execute(made).args[0]
        registry = subject.lowest
        return lambda: subject.edit(registry, made)

    chunk = max(1, subject.shape[0] // 2)
    return {
        PLAIN: lambda: partial(sample, model),
        "dependency noise (ZS²)": lambda: lambda: sample(model, subject.noise(0, KL)),
        "momentum attention (ZS²)": lambda: tapped("momentum", "TemporalMomentumAttention", MU),
        "momentum attention, half of the frames at a time": lambda: tapped(
            "momentum", "TemporalMomentumAttention", MU, frames_per_batch=chunk
        ),
        "attention to the first frame": across("first"),
        "attention to the first and previous frame": across("first_and_previous"),
        "attention to all frames": across("all"),
        "fine and coarse attention (EI²)": across("fine_coarse"),
        "token merging (VidToMe)": lambda: tapped("vidtome", "VidToMe"),
        "RAVE’s grids": lambda: tapped("rave", "RAVEGrid", 2),
        "Pix2Video’s guidance": lambda: tapped("pix2video", "Pix2VideoGuidance"),
        "entropy of every layer at every step": lambda: partial(sample, _measured(model)),
        "guidance A−I (IE-Adapt)": guidance("A-I"),
        "guidance U−I (IE-Adapt)": guidance("U-I"),
        "guidance U−I, layers ranked at every step": guidance("U-I", live=True),
        "edit: target and source (IE-Adapt)": edited,
        "edit with Plug-and-Play": lambda: edited(("plug_and_play", "PlugAndPlay")),
        "edit with TokenFlow": lambda: edited(("plug_and_play", "PlugAndPlay"), ("token_flow", "TokenFlow")),
        "inversion (DDIM)": lambda: (
            lambda: subject.inverted({"samples": torch.full(subject.shape, 0.1)}, subject.positive)
        ),
    }


def _measured(model: Any) -> Any:
    recorder = pack("attention.recorder").EntropyRecorder(precision="exact", recording=True)
    kinds = get_args(pack("attention.sites").Kind)
    return pack("attention.tap").tap(model, recorder, layers="*", kinds=kinds, asked_by="report")[0]
