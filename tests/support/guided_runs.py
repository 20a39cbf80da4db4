"""ComfyUI's own sampling with guidance, from given noise along given sigmas."""

from __future__ import annotations

from typing import Any

import torch
from comfy.samplers import CFGGuider, Sampler, sampler_object


def guided_run(
    model: Any,
    prompts: tuple[list, list],
    cfg: float,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    sampler: Sampler | str = "euler",
    start: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """``prompts``: positive and negative; ``start``: the latents, zeros if None."""
    guider = CFGGuider(model)
    guider.set_conds(*prompts)
    guider.set_cfg(cfg)
    start = torch.zeros_like(noise) if start is None else start
    sampler = sampler_object(sampler) if isinstance(sampler, str) else sampler
    with torch.inference_mode():
        return guider.sample(noise, start, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
