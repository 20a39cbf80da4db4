"""A run that measures a model's attention: it samples up to the last requested step.

The run is ComfyUI's own (CFGGuider, KSAMPLER): noise is scaled, masks are kept and weights are loaded as in sampling.
It uses the given conditioning alone, no guidance, and Euler steps, which are deterministic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from comfy.model_management import get_free_memory, throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from comfy.utils import ProgressBar
from torch import Tensor

from ..attention.maps import AttentionMap, MapRecorder
from ..attention.recorder import EntropyRecorder, Recorder
from ..attention.registry import SELECTABLE, Figures, Precision
from ..attention.sites import Kind, Site, select_sites, sites_of
from ..attention.tap import tap
from .finite import require_finite_prediction
from .latents import input_scale, noise_for, require_levels, samples_for
from .unfit import explain_unfit_inputs
from .unguided import UnguidedGuider


def parse_steps(text: str, total: int) -> tuple[int, ...]:
    """Step numbers from ``"0"``, ``"0, 5-8"`` or ``"all"``, sorted, each once; a run has ``total`` steps.

    Raises:
        ValueError: something else, or a step that the run does not have.
    """
    if text.strip().lower() == "all":
        return tuple(range(total))
    steps: set[int] = set()
    for piece in text.split(","):
        span = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", piece, re.ASCII)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (0, -1)
        if first > last:
            raise ValueError(
                f"measure_steps: {piece.strip()[:20]!r} is not a step. Write step numbers and ranges from 0, such as "
                "'0' or '0, 5-8', or 'all'."
            )
        if last >= total:
            raise ValueError(
                f"measure_steps: step {last} does not exist, the run has {total} steps: 0 to "
                f"{total - 1}. Use one of these."
            )
        steps.update(range(first, last + 1))
    return tuple(sorted(steps))


@dataclass(frozen=True)
class Start:
    """Where a run starts: ComfyUI's CONDITIONING, NOISE, SIGMAS (steps + 1,) and LATENT."""

    conditioning: list
    noise: Any
    sigmas: Tensor
    latent: dict[str, Any]

    def __post_init__(self) -> None:
        if len(self.sigmas) < 2:
            raise ValueError("sigmas holds no step, expected two values or more. Raise steps or denoise.")

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def measure_layers(
    model: ModelPatcher,
    start: Start,
    steps: Sequence[int],
    precision: Precision,
    asked_by: str,
    all_of_them: bool = True,
) -> tuple[list[Site], dict[str, Figures]]:
    """All attention sites of ``model``, and what was measured of those that run with such a start, by name, as the mean
    over ``steps``. ``all_of_them``: as in :meth:`..attention.recorder.EntropyRecorder.figures`.

    UnknownModelError, NoSuchSiteError and RegistryError as in :mod:`..attention`.
    """
    recorder = EntropyRecorder(precision)
    sites = look_on(model, start, recorder, steps, layers="*", kinds=get_args(Kind), asked_by=asked_by)
    return sites, recorder.figures(sites, all_of_them)


def record_maps(
    model: ModelPatcher, start: Start, step: int, layer: str, threshold: float, asked_by: str
) -> tuple[Site, list[AttentionMap]]:
    """The site that ``layer`` names, self-attention where both kinds match, and its maps at ``step``.

    Raises:
        ValueError: ``layer`` names several sites, or there is no such step.
        NoSuchSiteError, UnknownModelError, MapTooLargeError: as in :mod:`..attention`.
    """
    if step >= start.steps:
        raise ValueError(
            f"step: {step} does not exist, the run has {start.steps} steps: 0 to {start.steps - 1}. Use one of these."
        )
    site = _one_site(sites_of(model), layer)
    recorder = MapRecorder(threshold, get_free_memory)
    look_on(model, start, recorder, [step], layers=site.name, kinds=[site.kind], asked_by=asked_by)
    return site, recorder.maps


def _one_site(sites: list[Site], layer: str) -> Site:
    kinds = get_args(Kind)
    matched = select_sites(sites, layer, kinds)
    matched = [site for site in matched if site.kind in SELECTABLE] or matched
    if len(matched) > 1:
        raise ValueError(
            f"layer: expected one layer, but {layer!r} names {len(matched)}: "
            f"{', '.join(site.name for site in matched)}. Write one of these."
        )
    return matched[0]


def look_on(
    model: ModelPatcher,
    start: Start,
    recorder: Recorder,
    steps: Sequence[int],
    **where: Any,
) -> list[Site]:
    """Run ``model`` with ``recorder`` on the sites of ``where``, recording at ``steps``."""
    require_levels(model, start.sigmas)
    tapped, sites = tap(model, recorder, **where)
    progress = LayerProgress(sites, max(steps))
    recorder.on_layer = progress

    def before_step(step: int) -> None:
        progress.step = recorder.step = step
        recorder.recording = step in steps

    run_to_step(tapped, start, max(steps), before_step, where["asked_by"])
    return sites


class LayerProgress:
    """Progress by attention layer, for runs that are one model call; a cancel is obeyed at every layer."""

    def __init__(self, sites: Sequence[Site], last_step: int) -> None:
        self.step = 0
        self._place = {site.name: number for number, site in enumerate(sites, 1)}
        self._bar = ProgressBar((last_step + 1) * len(sites))

    def __call__(self, site: Site) -> None:
        throw_exception_if_processing_interrupted()
        self._bar.update_absolute(self.step * len(self._place) + self._place[site.name])


def run_to_step(
    model: ModelPatcher, start: Start, last_step: int, before_step: Callable[[int], None], asked_by: str
) -> None:
    """Sample ``model`` up to and with step ``last_step``; ``before_step`` gets the number of each step, from 0.

    The random state of torch is as before: core's RandomNoise seeds it.
    """

    def walk(model_wrap, x, sigmas, extra_args, callback, disable) -> Tensor:
        sampling = model_wrap.inner_model.inner_model.model_sampling
        for step in range(last_step + 1):
            before_step(step)
            sigma = sigmas[step]
            denoised = model_wrap(x * input_scale(sampling, sigma), sigma.expand(len(x)), **extra_args)
            require_finite_prediction(denoised, step, sigmas, asked_by)
            if step < last_step:
                x = x + (x - denoised) * ((sigmas[step + 1] - sigma) / sigma)
        return x

    guider = UnguidedGuider(model, asked_by)
    guider.inner_set_conds({"positive": start.conditioning})
    latent = start.latent
    samples = samples_for(model, latent)
    with torch.random.fork_rng(devices=[]):
        drawn = noise_for(start.noise, {**latent, "samples": samples})
        with explain_unfit_inputs(model, {"samples": samples}, conditioning=start.conditioning):
            guider.sample(
                drawn,
                samples,
                KSAMPLER(walk),
                start.sigmas,
                denoise_mask=latent.get("noise_mask"),
                disable_pbar=True,
                seed=start.noise.seed,
            )
