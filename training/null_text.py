"""Null-text inversion (Mokady et al., arXiv 2211.09794, §3.2 and Algorithm 1), which vid2vid-zero uses for clips.

    x*_0 … x*_T   DDIM inversion of the clip x*_0 with its prompt c, without guidance
    x̄_T = x*_T, ∅_{T+1} = the given negative
    for t = T … 1:
        ∅_t: N gradient steps from ∅_{t+1} on ‖x*_{t−1} − step(x̄_t, c, ∅_t)‖², guided at cfg
        x̄_{t−1} = step(x̄_t, c, ∅_t)

So guided sampling with ∅_t as the negative of step t follows the inversion back to the clip. All frames share ∅_t.

As in the authors' code: Adam; over the run its rate falls to a half, and the loss at which a step ends early rises to a
hundred times. The loss is a mean over latents of unit variance, as the model sees them, for any parametrisation. Ours:
a step keeps the best ∅ that it tried, the first one included, so no step ends farther away than it began.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from comfy.model_management import intermediate_device, throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, Sampler, calc_cond_batch
from latent_preview import prepare_callback
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from ..attention.keys import HOLD
from ..samplers.finite import require_finite_prediction
from ..samplers.inversion import NO_PICTURES, Inversion, InversionSampler
from ..samplers.latents import input_scale, model_scale, require_falling, require_levels, samples_for
from ..samplers.unfit import UnfitError
from .loop import TrainingError
from .memory import gibibytes, is_free, needed_to_follow, require
from .sampler import (
    Held,
    Precision,
    autograd_enabled,
    dtype_of,
    recompute_blocks,
    sample_trainable,
    trainable,
)

CALC_CONDS = "sampler_calc_cond_batch_function"
FINAL_RATE, FINAL_TOLERANCE = 0.5, 100.0
"""By the run's end, relative to its start: 1 − i/100 and 1 + 2i at step i of 50 in the authors' code."""

LossOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of a negative text: the loss of a step, and where the step arrives."""


@dataclass(frozen=True)
class NullText:
    """``early_stop``: the loss at which the first step ends early, 0 for never. ``refine_iterations``: the
    inversion's."""

    cfg: float = 7.5
    inner_steps: int = 10
    learning_rate: float = 0.01
    early_stop: float = 1e-5
    refine_iterations: int = 0
    precision: Precision = "auto"


@dataclass
class Report:
    """Of each step, in the order of sampling: its noise level, how often its negative was changed, and how far it
    arrives from the inversion (RMS, of latents of unit variance) with the negative before and its own."""

    sigma: list[float] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Inverted:
    """``negative``: CONDITIONING by time range. ``noise``, ``reconstruction``: samples as a LATENT has them, of the
    inversion and of guided sampling with that negative. ``needed``: bytes told before the first step."""

    negative: list
    noise: Tensor
    reconstruction: Tensor
    report: Report
    needed: int
    recomputed: bool
    dtype: torch.dtype


def null_text(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: dict[str, Any],
    sigmas: Tensor,
    settings: NullText,
    asked_by: str,
) -> Inverted:
    """``model``, CONDITIONING, LATENT and SIGMAS as guided sampling will have them.

    ValueError and TrainingError for what cannot be inverted or followed, and where memory is short.
    """
    _require_prompts(positive, negative, settings)
    require_falling(sigmas)
    require_levels(model, sigmas)
    times = time_ranges(model.get_model_object("model_sampling"), sigmas)
    dtype = dtype_of(settings.precision)
    with autograd_enabled():
        samples = samples_for(model, latent)
        if samples.is_nested:
            raise ValueError(NO_PICTURES)
        copied = trainable(model, dtype)
        run = _Run(settings, negative[0][0].detach().clone().float(), dtype, asked_by, prepare_callback(copied, 1))
        try:
            sample_trainable(
                copied,
                _Guider(copied),
                {"positive": positive, "negative": negative},
                samples.clone(),
                run,
                sigmas.clone(),
                latent.get("noise_mask"),
            )
        except UnfitError as error:
            if "autograd" not in str(error):
                raise
            raise TrainingError(
                f"{asked_by} finds the negative by gradients, but a kernel that this model "
                f"({type(model.model.model_config).__name__}) runs on has none here. Use a model of another family, "
                "such as SD1.5, SDXL, Flux or Wan, or BilateralDDIMInvert at cfg 1."
            ) from error
        process_out = copied.model.process_latent_out
        noise, reconstruction = (process_out(x.float()).to(intermediate_device()) for x in (run.noise, run.arrived))
    (_, others) = negative[0]
    scheduled = [
        [text.to(intermediate_device()), {**others, "start_percent": start, "end_percent": end}]
        for text, (start, end) in zip(run.texts, times, strict=True)
    ]
    return Inverted(scheduled, noise, reconstruction, run.report, run.needed, run.held is not None, dtype)


def time_ranges(sampling: Any, sigmas: Tensor) -> list[tuple[float, float]]:
    """For each step of a run along falling ``sigmas``, the start_percent and end_percent that hold its noise level and
    no other step's. ValueError where two levels are so close that ComfyUI's percentages do not part them."""
    edges = [0.0]
    for noisier, cleaner in pairwise(sigmas[:-1].tolist()):
        low, high, between = edges[-1], 1.0, math.sqrt(noisier * cleaner)
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > between else (low, middle)
        if not noisier > float(sampling.percent_to_sigma(high)) > cleaner:
            raise ValueError(
                f"sigmas: the steps at {noisier:.7g} and {cleaner:.7g} are too close to get a negative prompt "
                "each. Use fewer steps, or another scheduler."
            )
        edges.append(high)
    return list(pairwise([*edges, 1.0]))


def follow(
    loss_of: LossOf, text: Tensor, changes: int, rate: float, enough: float, on_try: Callable[[Tensor], None]
) -> tuple[Tensor, Tensor, list[float]]:
    """The best of ``text`` and at most ``changes`` further ones by gradient descent, where the step arrives with it,
    and all losses. ``on_try`` gets where a step arrives. TrainingError where the loss does not depend on the text."""
    text = text.detach().clone().requires_grad_(True)
    adam, losses, best = torch.optim.Adam([text], lr=rate), [], text.detach().clone()
    for number in range(changes + 1):
        throw_exception_if_processing_interrupted()
        is_last = number == changes
        with torch.set_grad_enabled(not is_last):
            loss, arrived = loss_of(text)
        losses.append(loss.item())
        if losses[-1] == min(losses) and losses.index(losses[-1]) == number:
            best, there = text.detach().clone(), arrived.detach()
        on_try(arrived.detach())
        if is_last or losses[-1] < enough:
            break
        if not loss.requires_grad:
            raise TrainingError(
                "The model's prediction does not depend on the negative prompt, so no negative can be found. Remove "
                "nodes that skip model calls (EasyCache) or replace the guidance, and use a model that reads the "
                "negative prompt."
            )
        (text.grad,) = torch.autograd.grad(loss, text)
        adam.step()
    return best, there, losses


class _Guider(CFGGuider):
    """Classifier-free guidance with every hook of the model, in which only the negative's prediction has a gradient:
    the positive's stays the same while a step's negative is sought."""

    held: Held | None = None
    _known: tuple[Tensor, Tensor, Tensor] | None = None

    def tell(self, text: Tensor) -> None:
        """From now on the negative says ``text``."""
        for entry in self.conds["negative"]:
            told = entry["model_conds"]["c_crossattn"]
            entry["model_conds"] = {**entry["model_conds"], "c_crossattn": type(told)(text)}

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        options = model_options or {}
        if self.cfg != 1.0 and CALC_CONDS not in options:
            options = {**options, CALC_CONDS: self._conds_apart}
        return super().predict_noise(x, timestep, options, seed)

    def _conds_apart(self, args: dict[str, Any]) -> list[Tensor]:
        x, sigma, options = args["input"], args["sigma"], args["model_options"]
        positive, negative = args["conds"]
        if self._known is None or not (torch.equal(self._known[0], x) and torch.equal(self._known[1], sigma)):
            with torch.no_grad():
                self._known = x, sigma, calc_cond_batch(args["model"], [positive], x, sigma, options)[0]
        if self.held is not None and torch.is_grad_enabled():
            options = {**options, "transformer_options": {**options["transformer_options"], HOLD: self.held}}
        return [self._known[2].clone(), *calc_cond_batch(args["model"], [negative], x, sigma, options)]


class _Progress:
    """The node's bar and its preview: the steps of the inversion, then every try of every step."""

    def __init__(self, preview: Callable, steps: int, changes: int) -> None:
        self._preview, self._steps, self._tries, self._done = preview, steps, changes + 1, 0

    def __call__(self, shown: Tensor) -> None:
        with torch.inference_mode():  # as the previewer's own weights
            self._preview(self._done, shown, shown, self._steps * (1 + self._tries))
        self._done += 1

    def after(self, step: int) -> None:
        """A step may have ended early."""
        self._done = self._steps + (step + 1) * self._tries


@dataclass(eq=False)
class _Run(Sampler):
    """Inverts and follows. The rest is what came out."""

    settings: NullText
    text: Tensor
    dtype: torch.dtype
    asked_by: str
    preview: Callable
    texts: list[Tensor] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    needed: int = 0
    held: Held | None = None

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        settings, steps, latent_image = self.settings, len(sigmas) - 1, latent_image.detach().clone()
        self._require_text(guider)
        with ExitStack() as around:
            in_dtype = torch.autocast(latent_image.device.type, self.dtype, enabled=self.dtype is not torch.float32)
            around.enter_context(in_dtype)
            path, progress = list[Tensor](), _Progress(self.preview, steps, settings.inner_steps)

            def on_step(_step: int, denoised: Tensor, _x: Tensor, _steps: int) -> None:
                throw_exception_if_processing_interrupted()
                progress(denoised)

            inversion = Inversion("none", refine_iterations=settings.refine_iterations)
            inverse = InversionSampler(inversion, keep=lambda latent: path.append(latent.cpu()))
            guider.set_cfg(1.0)
            with torch.no_grad():
                self.noise = inverse.sample(
                    guider, sigmas.flip(0), extra_args, on_step, noise, latent_image, denoise_mask
                ).clone()
            guider.set_cfg(settings.cfg)
            x, text = path.pop().to(latent_image), self.text.to(latent_image.device)
            for step in range(steps):
                loss_of = partial(self._loss, guider, sigmas, extra_args, step, x, path.pop().to(x))
                if step == 0:
                    self._require_memory(guider, loss_of, text)
                    if _writes_over_itself(loss_of, text):
                        around.enter_context(allow_mutation_on_saved_tensors())
                done = step / steps
                enough = settings.early_stop * (1 + (FINAL_TOLERANCE - 1) * done)
                rate = settings.learning_rate * (1 - (1 - FINAL_RATE) * done)
                text, x, losses = follow(loss_of, text, settings.inner_steps, rate, enough, progress)
                progress.after(step)
                self.texts.append(text)
                self._note(sigmas[step], losses)
        self.arrived = guider.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)
        return latent_image

    def _loss(
        self,
        guider: _Guider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        step: int,
        x: Tensor,
        goal: Tensor,
        text: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.held is not None:
            self.held.clear()
        guider.tell(text)
        sampling, sigma, following = guider.inner_model.model_sampling, sigmas[step], sigmas[step + 1]
        denoised = guider(x * input_scale(sampling, sigma), sigma.expand(len(x)), **extra_args).float()
        require_finite_prediction(denoised, step, sigmas, self.asked_by)
        arrived = x + (x - denoised) * ((following - sigma) / sigma)
        return ((arrived - goal) * model_scale(sampling, following)).square().mean(), arrived

    def _note(self, sigma: Tensor, losses: Sequence[float]) -> None:
        self.report.sigma.append(sigma.item())
        self.report.changes.append(losses.index(min(losses)))
        self.report.before.append(math.sqrt(losses[0]))
        self.report.after.append(math.sqrt(min(losses)))

    def _require_text(self, guider: _Guider) -> None:
        for entry in guider.conds["negative"]:
            told = entry["model_conds"].get("c_crossattn")
            if told is None or not torch.equal(told.cond.float().cpu(), self.text.cpu()):
                raise TrainingError(
                    "This model does not read the negative prompt as it was given, so it cannot be optimised. Use a "
                    "model with a text encoder of its own (SD1.5, SDXL, Wan, CogVideoX, LTXV, Flux)."
                )

    def _require_memory(self, guider: _Guider, loss_of: LossOf, text: Tensor) -> None:
        """TrainingError where a step takes more memory than is free, also if blocks are computed twice for that."""
        measured = text.detach().clone().requires_grad_(True)

        def needed() -> int:
            return needed_to_follow(lambda: loss_of(measured)[0], measured)

        self.needed = needed()
        if not is_free(self.needed):
            guider.held = self.held = recompute_blocks(guider.inner_model.diffusion_model)
            self.needed = needed()
        logging.info(
            "%s: each step needs about %s beside the model%s.",
            self.asked_by,
            gibibytes(self.needed),
            ", with every block computed twice" if self.held else "",
        )
        require(
            self.needed, "Optimising the negative prompt", ["use a smaller or shorter clip", "set precision to bf16"]
        )


def _writes_over_itself(loss_of: LossOf, text: Tensor) -> bool:
    """Whether the model overwrites what its backward pass needs, as Flux's blocks do. To allow it makes every model
    slower."""
    text = text.detach().clone().requires_grad_(True)
    try:
        loss, _ = loss_of(text)
        if loss.requires_grad:
            torch.autograd.grad(loss, text)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return True
    return False


def _require_prompts(positive: list, negative: list, settings: NullText) -> None:
    if settings.cfg == 1.0:
        raise ValueError(
            "cfg is 1, at which the negative prompt has no effect. Set it to the cfg that you will sample with, above "
            "1; at cfg 1, use BilateralDDIMInvert."
        )
    if len(negative) != 1:
        raise ValueError(
            f"negative combines {len(negative)} conditionings, expected one, which is optimised. Connect one CLIP Text "
            "Encode; it may be empty."
        )
    ((_, others),) = negative
    if others.get("start_percent", 0.0) > 0.0 or others.get("end_percent", 1.0) < 1.0:
        raise ValueError(
            "negative applies to a part of sampling only, expected all of it, as each step gets its own. Connect it "
            "from before ConditioningSetTimestepRange."
        )
    if any("control" in more for _, more in (*positive, *negative)):
        raise TrainingError(
            "positive or negative has a ControlNet, expected plain prompts. Connect the prompts from before the "
            "ControlNet."
        )
