"""What the picture model computes, as a lesson for the layers of the video transformer.

Both have features at 8×8 places: the UNet at its lowest level, the transformer in its patches. A still picture's
latents are the same frame four times, each with noise of its own; their mean is a picture with half the noise, which
the picture model can read. Linear maps of the transformer's hidden states have to give what it makes of it. This is Yu
et al., "Representation Alignment for Generation" (REPA, 2024), with a denoiser as the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..world.model import WorldTextEncoder, unet_module
from ..world.transformer import CHUNK
from .diffusion import attention
from .first.text import encode
from .first.unet import alphas_cumprod
from .optimizer import Muon
from .state import Training, trained_weights

TAUGHT = {1: "middle_block.2", 3: "output_blocks.1.1"}
"""The transformer's blocks, from 0, and which of the UNet's layers they learn from."""
FEATURES = 128  # of those layers


class _Enough(Exception):
    """The UNet has computed what is asked for."""


class Teacher:
    """The picture model, which is frozen, and the linear maps, which learn beside the transformer."""

    def __init__(self, transformer: Any, encoder: WorldTextEncoder, average: float) -> None:
        device = next(transformer.parameters()).device
        self._encoder, self._signals = encoder, alphas_cumprod().to(device)
        self._unet = unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
        self._unet.load_state_dict(trained_weights("world_image"))
        self._unet.requires_grad_(False)
        maps = nn.ModuleDict({str(block): nn.Linear(transformer.dim, FEATURES) for block in TAUGHT}).to(device)
        self.maps = Training("world_transformer_maps", maps, Muon(maps.named_parameters(), ends=r"^$"), average)
        self._hidden, self._features = dict[int, Tensor](), dict[int, Tensor]()
        for block, layer in TAUGHT.items():
            transformer.blocks[block].register_forward_hook(_keep(self._hidden, block))
            hook = _keep(self._features, block, ends=block == max(TAUGHT))
            self._unet.get_submodule(layer).register_forward_hook(hook)

    def errors(self, noised: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor | None:
        """How far the hidden states of the transformer's last call are from the features of still pictures
        (B, 16, 1, h, w): (B,), about 1 before it has learned anything. None for clips, which are not taught."""
        if noised.shape[2] > 1:
            return None
        self._look(noised[:, :, 0].unflatten(1, (CHUNK, -1)).mean(1), sigma, sigma / CHUNK**0.5, tokens)
        errors = torch.zeros_like(sigma)
        for block, features in self._features.items():
            hidden = self._hidden[block]
            mapped = self.maps.module.get_submodule(str(block))(F.layer_norm(hidden, hidden.shape[-1:]))
            wanted = F.layer_norm(features.flatten(2).transpose(1, 2).float(), (FEATURES,))
            errors = errors + (mapped.float() - wanted).square().mean((1, 2)) / len(TAUGHT)
        return errors

    @torch.no_grad()
    def _look(self, noised: Tensor, sigma: Tensor, noise: Tensor, tokens: Tensor) -> None:
        """The UNet's features of (1 - sigma) · picture + noise · ε, at the timestep that has that noise."""
        spread = ((1 - self._signals) / self._signals).sqrt()
        steps = torch.searchsorted(spread, noise / (1 - sigma).clamp(min=1e-3)).clamp(max=len(spread) - 1)
        size = ((1 - sigma).square() + noise.square()).sqrt().reshape(-1, 1, 1, 1)
        with suppress(_Enough):
            self._unet(
                noised / size,
                timesteps=steps.float(),
                context=encode(self._encoder, tokens),
                transformer_options={"optimized_attention_override": attention},
            )


def _keep(kept: dict[int, Tensor], block: int, ends: bool = False) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        kept[block] = output
        if ends:
            raise _Enough

    return hook
