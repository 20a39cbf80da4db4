"""What the picture model computes, as a lesson for the layers of the transformers.

Both have features at 8×8 places: the UNet at its lowest level, the transformers in their patches. Linear maps of a
transformer's hidden states have to give what the UNet makes of the same noised picture. To the video transformer, a
still picture's latents are the same frame four times, each with noise of its own; the UNet reads their mean, which has
half the noise. This is Yu et al., "Representation Alignment for Generation" (REPA, 2024), with a denoiser as the
teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

LAYERS = ("middle_block.2", "output_blocks.1.1")
"""Of the UNet, that teach."""
FEATURES = 128  # of those layers


class _Enough(Exception):
    """The UNet has computed what is asked for."""


class Teacher:
    """The picture model, which is frozen, and the linear maps, which learn beside the transformer.

    ``blocks``: which of the transformer's blocks learn, one from each of ``LAYERS``; ``width``: of their hidden states.
    """

    def __init__(
        self,
        part: str,
        transformer: nn.Module,
        blocks: Sequence[str],
        width: int,
        encoder: WorldTextEncoder,
        average: float,
    ) -> None:
        device = next(transformer.parameters()).device
        self._encoder, self._signals = encoder, alphas_cumprod().to(device)
        self._unet = unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
        self._unet.load_state_dict(trained_weights("world_image"))
        self._unet.requires_grad_(False)
        maps = nn.ModuleDict({block.replace(".", "_"): nn.Linear(width, FEATURES) for block in blocks}).to(device)
        self.maps = Training(f"{part}_maps", maps, Muon(maps.named_parameters(), ends=r"^$"), average)
        self._hidden, self._features = list[Tensor](), list[Tensor]()
        for block, layer in zip(blocks, LAYERS, strict=True):
            transformer.get_submodule(block).register_forward_hook(_keep(self._hidden))
            self._unet.get_submodule(layer).register_forward_hook(_keep(self._features, ends=layer == LAYERS[-1]))

    def errors(self, noised: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor | None:
        """How far the hidden states of the transformer's last call are from the features of pictures (B, 4, h, w), or
        of still ones (B, 16, 1, h, w): (B,), about 1 before it has learned anything. None for clips, which are not
        taught."""
        hidden, self._hidden[:] = list(self._hidden), []
        if noised.ndim == 5:
            if noised.shape[2] > 1:
                return None
            pictures, noise = noised[:, :, 0].unflatten(1, (CHUNK, -1)).mean(1), sigma / CHUNK**0.5
        else:
            pictures, noise = noised, sigma
        self._look(pictures, sigma, noise, tokens)
        errors = torch.zeros_like(sigma)
        for learn, states, features in zip(self.maps.module.children(), hidden, self._features, strict=True):
            wanted = F.layer_norm(features.flatten(2).transpose(1, 2).float(), (FEATURES,))
            states = states[:, -wanted.shape[1] :]  # after those of the text, where it is read with the picture
            mapped = learn(F.layer_norm(states, states.shape[-1:]))
            errors = errors + (mapped.float() - wanted).square().mean((1, 2)) / len(LAYERS)
        self._features.clear()
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


def _keep(kept: list[Tensor], ends: bool = False) -> Callable[[nn.Module, object, Any], None]:
    def hook(_: nn.Module, __: object, output: Any) -> None:
        # the picture's, where the text has its own; a copy, since Flux's blocks add to what they get in place
        kept.append((output[0] if isinstance(output, tuple) else output).clone())
        if ends:
            raise _Enough

    return hook
