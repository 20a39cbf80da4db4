"""What the families' table tries its nodes on: a model of every family, with latents and prompts for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from animatediff_layout import animate
from coherence.attention.sites import sites_of
from coherence.demo.model import load_model
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.samplers.noises import clip_of
from comfy.nested_tensor import NestedTensor
from comfy.samplers import CFGGuider, calculate_sigmas, sampler_object
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from tiny_models import FAMILIES, RELATIVES, Family, TinyModels
from watching import DEMO


class Encoder:
    """A text encoder for families whose own is too large: every prompt is the family's conditioning."""

    def __init__(self, conditioning: list) -> None:
        self._conditioning = conditioning

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, _tokens: str) -> list:
        return self._conditioning


class Decoder:
    """A VAE for families whose own is too large: the first channels as a picture, 16 pixels a latent. What it is tried
    on decodes only; nodes take no VAE without ``encode``."""

    encode = None

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        shown = (samples / samples.std()).movedim(1, -1)[..., :3].sigmoid()
        return shown.repeat_interleave(16, dim=-3).repeat_interleave(16, dim=-2)


@dataclass
class Subject:
    """A family's model with latents and prompts for it. ``family``: of tiny_models, or the demo model's like."""

    model: Any
    family: Family | SimpleNamespace

    @cached_property
    def conditioning(self) -> tuple[list, list]:
        return self.family.conditioning()

    @property
    def target(self) -> list:
        """An edit's other prompt."""
        return [[-text, extras] for text, extras in self.conditioning[0]]

    @property
    def latent(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        return {"samples": self.mapped(lambda part: 0.5 * torch.randn(part.shape, generator=generator))}

    @property
    def empty(self) -> dict[str, Any]:
        return {"samples": self.mapped(torch.zeros_like)}

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor], samples: Any = None) -> Any:
        """``samples``, or zeros, changed: of a clip with sound both parts."""
        if samples is None:
            samples = self.family.zeros() if self.with_sound else torch.zeros(self.family.latent_shape)
        return NestedTensor(map(change, samples.unbind())) if self.with_sound else change(samples)

    @property
    def with_sound(self) -> bool:
        return bool(getattr(self.family, "sound_shape", ()))

    def sigmas(self, steps: int = 2) -> torch.Tensor:
        return calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", steps)

    @property
    def late(self) -> torch.Tensor:
        """One step, from where attention counts and float32 does not cancel."""
        sampling = self.model.get_model_object("model_sampling")
        return torch.tensor([float(sampling.percent_to_sigma(0.5)), 0.0])

    @property
    def layers(self) -> str:
        """The last self-attention layer that several tokens go through."""
        return next(s.name for s in reversed(sites_of(self.model)) if s.kind in ("spatial", "joint"))

    @cached_property
    def registry(self) -> Any:
        return SelectAttentionLayers.execute(self.model, self.layers)[0]

    def sample(self, guider: Any, noise: Any = None, **how: Any) -> torch.Tensor:
        how = {"latent": self.empty, "sampler": sampler_object("euler"), "sigmas": self.late} | how
        latent, noise = how["latent"], noise or Noise_RandomNoise(3)
        with torch.inference_mode():
            sampled = guider.sample(
                noise.generate_noise(latent),
                latent["samples"],
                how["sampler"],
                how["sigmas"],
                disable_pbar=True,
                seed=3,
            )
        return clip_of(sampled)

    def drawn(self, model: Any, cfg: float = 1.0, positive: list | None = None, **how: Any) -> torch.Tensor:
        guider = CFGGuider(model)
        guider.set_conds(positive or self.conditioning[0], self.conditioning[1])
        guider.set_cfg(cfg)
        return self.sample(guider, **how)

    @cached_property
    def plain(self) -> torch.Tensor:
        return self.drawn(self.model)


def subject(name: str, tiny_models: TinyModels) -> Subject:
    if name == "animatediff":
        return Subject(animate(load_model()), DEMO)
    if name == "LTX-2 alone":
        return Subject(tiny_models.load("LTX-2"), replace(RELATIVES["LTX-2"], sound_shape=()))
    return Subject(tiny_models.load(name), RELATIVES.get(name) or FAMILIES[name])


GROUPS = {
    "UNets": {"SD1.5": "sd15", "SDXL": "sdxl", "SVD": "svd", "AnimateDiff-Evolved": "animatediff"},
    "Transformers that draw pictures": {
        "Flux": "flux",
        "Flux.2": "Flux.2",
        "Chroma": "Chroma",
        "SD3.5": "sd3",
        "Qwen-Image": "qwen_image",
        "Z-Image": "z_image",
        "Z-Image Omni": "Z-Image Omni",
        "Lumina 2": "Lumina 2",
        "Krea 2": "krea2",
        "OmniGen 2": "OmniGen2",
        "HiDream I1": "HiDream",
        "HunyuanImage 2.1": "HunyuanImage",
        "Anima": "anima",
        "Cosmos-Predict2": "Cosmos-Predict2",
        "Kandinsky 5 Image": "Kandinsky 5 Image",
    },
    "Transformers that draw videos": {
        "Wan 2.1": "wan21",
        "Wan 2.1 HuMo": "Wan 2.1 HuMo",
        "Wan 2.1 SCAIL": "Wan 2.1 SCAIL",
        "Wan 2.2 S2V": "Wan 2.2 S2V",
        "Wan 2.2 Animate": "Wan 2.2 Animate",
        "LTXV": "ltxv",
        "LTX-2": "LTX-2",
        "LTX-2, video alone": "LTX-2 alone",
        "HunyuanVideo": "hunyuan_video",
        "HunyuanVideo 1.5": "HunyuanVideo 1.5",
        "CogVideoX": "cogvideox",
        "Cosmos-Predict2 Video": "Cosmos-Predict2 Video",
        "Kandinsky 5": "Kandinsky 5",
        "Mochi": "Mochi",
        "MiniMax H3": "MiniMax H3",
    },
}
"""Heading of a table → column of it → name of the subject."""
SUBJECTS = {title: name for columns in GROUPS.values() for title, name in columns.items()}
