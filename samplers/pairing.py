"""One sampler for two clips: source and target take the same steps, so that they can be denoised together.

The sampler is not aware of this: it processes one latent, the source's rows before the target's. That is correct as
long as it treats every value independently. A rehearsal on a few values checks this before the run, with a denoiser
that costs nothing: two equal halves must stay equal (otherwise the sampler draws noise), and the first must not depend
on the second (otherwise its steps do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from comfy.samplers import Sampler, cfg_function
from torch import Tensor

from ..noise.streams import generator


class PairGuider(Protocol):
    """What denoises the two: ComfyUI's guider, told when its conditionings are ready, who samples and with which
    model options."""

    def pair_branches(self, sampler: Sampler, options: dict[str, Any]) -> None: ...

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor: ...


@dataclass(eq=False)
class PairSampler(Sampler):
    """A SAMPLER that starts ``sampler`` on two equal clips; returns (2 · rows, …), the source before the target.

    ValueError where ``sampler`` cannot take the same steps with both. Previews show the target.
    """

    sampler: Sampler

    def sample(
        self,
        model_wrap: PairGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        if not _keeps_pairs(self.sampler, model_wrap, sigmas, noise, denoise_mask is not None):
            raise ValueError(
                f"sampler: {_name(self.sampler)} draws noise of its own, or adapts its steps, so source and target "
                "would diverge. Choose a sampler without noise, such as euler, ddim, heun, dpmpp_2m or uni_pc."
            )
        model_wrap.pair_branches(self.sampler, extra_args["model_options"])

        def on_target(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            callback(step, denoised.chunk(2)[1], x.chunk(2)[1], total)

        twice = [None if x is None else torch.cat([x, x]) for x in (noise, latent_image, denoise_mask)]
        return self.sampler.sample(model_wrap, sigmas, extra_args, callback and on_target, *twice, disable_pbar)


def _name(sampler: Sampler) -> str:
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
    return name.removeprefix("sample_")


class _Rehearsed:
    """The guider as samplers see it, before a model that costs nothing and treats every value for itself."""

    def __init__(self, guider: PairGuider) -> None:
        self._guider = guider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        denoised = x / (1 + timestep.reshape(-1, *[1] * (x.ndim - 1)))
        # for samplers that look at the unguided result
        return cfg_function(self.inner_model, denoised, denoised, 1.0, x, timestep, model_options=model_options or {})


def _keeps_pairs(sampler: Sampler, guider: PairGuider, sigmas: Tensor, noise: Tensor, masked: bool) -> bool:
    shape = (1, *noise.shape[1:-2], 4, 4)  # whole vectors of the processor: no value is computed by other code
    first, other = torch.randn((2, *shape), generator=generator(0)).to(noise)

    def rehearse(source: Tensor, target: Tensor) -> Tensor:
        pair = torch.cat([source, target])
        return sampler.sample(
            _Rehearsed(guider),
            sigmas,
            {"model_options": {"transformer_options": {"sample_sigmas": sigmas}}, "seed": 0},
            None,
            pair,
            torch.zeros_like(pair),
            torch.full_like(pair, 0.5) if masked else None,
            True,
        ).chunk(2)

    with torch.random.fork_rng(devices=[noise.device] if noise.is_cuda else []):
        alike, apart = rehearse(first, first), rehearse(first, other)
    return torch.equal(*alike) and torch.equal(alike[0], apart[0])
