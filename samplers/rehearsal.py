"""A sampler tried out before a run, on a few values and with a denoiser that costs nothing.

The denoiser treats every value by itself. So two equal halves of a batch stay equal unless the sampler draws noise, and
different ones do not meet unless its steps depend on all of the batch. Where it takes all that it sees for clean, what
a change of its predictions does to a step is seen alone, however often the step calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.samplers import KSAMPLER, Sampler, cfg_function
from torch import Tensor

from ..noise.streams import generator


class _Rehearsed:
    """``guider`` as samplers see it, without its model; ``all_clean``: it predicts what it is given."""

    def __init__(self, guider: Any, all_clean: bool = False) -> None:
        self._guider, self._all_clean = guider, all_clean

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        denoised = x if self._all_clean else x / (1 + timestep.reshape(-1, *[1] * (x.ndim - 1)))
        # for samplers that look at the unguided result
        return cfg_function(self.inner_model, denoised, denoised, 1.0, x, timestep, model_options=model_options or {})


@contextmanager
def random_state_kept(like: Tensor) -> Iterator[None]:
    """torch's random state, and that of the device of ``like``, are afterwards as they were."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        yield


def two_of(noise: Tensor) -> Tensor:
    """Two different clips of one row, (2, 1, …), with as many values as a rehearsal takes of ``noise``."""
    shape = (2, 1, *noise.shape[1:-2], 4, 4)  # whole vectors of the processor: no value is computed by other code
    return torch.randn(shape, generator=generator(0)).to(noise)


def rehearsal_args(sigmas: Tensor) -> dict[str, Any]:
    """What a SAMPLER is given as ``extra_args`` in a rehearsal."""
    return {"model_options": {"transformer_options": {"sample_sigmas": sigmas}}, "seed": 0}


def rehearsed(
    sampler: Sampler, guider: Any, sigmas: Tensor, one: Tensor, other: Tensor, *, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """What ``sampler`` makes of noise ``one`` and ``other``, each (1, …), as two halves of a batch."""
    pair = torch.cat([one, other])
    with random_state_kept(pair):
        made = sampler.sample(
            _Rehearsed(guider),
            sigmas,
            rehearsal_args(sigmas),
            None,
            pair,
            torch.zeros_like(pair),
            torch.full_like(pair, 0.5) if masked else None,
            True,
        )
    first, second = made.chunk(2)
    return first, second


def moved_by(
    change: Callable[[dict[str, Any]], Tensor], sampler: KSAMPLER, guider: Any, sigmas: Tensor, like: Tensor
) -> float:
    """How far, on average, ``change`` moves what ``sampler`` makes of noise, of the form of ``like``. ``change`` is a
    function that ComfyUI calls after guidance. Noise drawn on the way is the same with it and without."""
    options = {name: value for name, value in sampler.extra_options.items() if name != "noise_sampler"}
    plain, noise = KSAMPLER(sampler.sampler_function, options, sampler.inpaint_options), two_of(like)[0].float()
    ends = []
    for hooks in ([], [change]):
        args = rehearsal_args(sigmas)
        args["model_options"]["sampler_post_cfg_function"] = hooks
        with random_state_kept(noise):  # so it begins alike
            still = torch.zeros_like(noise)
            ends.append(plain.sample(_Rehearsed(guider, True), sigmas, args, None, noise.clone(), still, None, True))
    return (ends[1] - ends[0]).mean().item()
