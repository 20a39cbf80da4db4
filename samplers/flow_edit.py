"""FlowEdit (arXiv 2412.08629): a clip moves from its own prompt to another one, without an inversion.

Algorithm 1, for a flow model with velocity V, the clip X, levels t from 1 (noise) to 0, and n_avg averages:

    Z_FE = X                                              at the first level used: the noisy ones before are left out
    for each step from t to the next level t':
        N ~ N(0, I),  Z_src = (1 − t) X + t N             the clip at this level
        Z_tar = Z_FE + Z_src − X                          the edited clip at this level, with the same noise
        ΔV = V(Z_tar, t, target) − V(Z_src, t, source)    the mean over n_avg draws of N
        Z_FE = Z_FE + (t' − t) ΔV

What is kept here is how far the clip has moved, M = Z_FE − X: then Z_tar = Z_src + M exactly, and equal prompts with
equal guidance move nothing, not even by rounding. ComfyUI's models return the clean latent D = Z − tV, so that
ΔV = (M − (D_tar − D_src)) / t. The paper's n_max is the number of steps that are taken, its n_min is 0. The authors'
code sets Flux's guidance by an embedding; here both clips have classifier-free guidance, and conditionings bring
embeddings along.

The two clips of a step are denoised as those of an edit are (:mod:`.editing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_management import intermediate_device, throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, COSMOS_RFLOW, IMG_TO_IMG_FLOW
from comfy.samplers import KSamplerX0Inpaint, Sampler
from comfy.utils import PROGRESS_BAR_ENABLED, model_trange
from latent_preview import prepare_callback
from torch import Tensor

from ..noise.streams import Indices, generator, plain_noise
from ..techniques.choice import ALL_HEADS, Choice
from .editing import Edit, EditGuider, Prompts, require_editable
from .latents import require_falling, require_levels, samples_for
from .unfit import explain_unfit_inputs

Draw = Callable[[int, int], Tensor]
"""The noise N of a step and of one of its averages, both counted from 0."""
Denoise = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""The clean clips D of source and target at a step, from N and M."""
OnCall = Callable[[int, Tensor, Tensor], None]
"""Told after each model call its number, the edit as it would be were the step to end at 0, and Z_FE."""


@dataclass(frozen=True)
class FlowEdit:
    """``skip_steps``: left out at the noisy end, by which the steps' noise does not change."""

    source_cfg: float = 1.5
    target_cfg: float = 5.5
    skip_steps: int = 0
    averages: int = 1
    seed: int = 0


def flow_edit(x: Tensor, times: Tensor, denoise: Denoise, draw: Draw, averages: int, on_call: OnCall) -> Tensor:
    """Algorithm 1: Z_FE of the clip ``x`` after falling ``times`` (steps + 1,), in averages · steps model calls."""
    moved = torch.zeros_like(x)
    for step, width in enumerate(times.diff()):
        velocity = torch.zeros_like(x)
        for average in range(averages):
            source, target = denoise(draw(step, average), moved, step)
            velocity = velocity + (moved - (target - source)) / times[step] / averages
            on_call(step * averages + average, x + (target - source), x + moved)
        moved = moved + width * velocity
    return x + moved


@dataclass(eq=False)
class FlowEditSampler(Sampler):
    """A SAMPLER for an :class:`.editing.EditGuider`: edits its latent. The noise that it is given does not count.

    ``indices``: the latent's ``batch_index``. Previews show the edit.
    """

    edit: FlowEdit
    indices: Indices = None

    def sample(
        self,
        model_wrap: EditGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        sampling, edit = model_wrap.inner_model.model_sampling, self.edit
        model_wrap.pair_branches(self, extra_args["model_options"])
        model = KSamplerX0Inpaint(model_wrap, sigmas)  # ComfyUI's masks: outside them nothing moves
        model.latent_image = torch.cat([latent_image, latent_image])
        mask = None if denoise_mask is None else torch.cat([denoise_mask, denoise_mask])
        # Cosmos' latents at a level are X + σN = Z / (1 − t), with t = σ / (σ + 1)
        scales = 1 + sigmas if isinstance(sampling, COSMOS_RFLOW) else torch.ones_like(sigmas)
        indices = range(len(latent_image)) if self.indices is None else self.indices

        def draw(step: int, average: int) -> Tensor:
            stream = generator(edit.seed, edit.skip_steps + step, average)
            return plain_noise(latent_image.shape, stream, indices).to(latent_image)

        def denoise(noise: Tensor, moved: Tensor, step: int) -> tuple[Tensor, Tensor]:
            throw_exception_if_processing_interrupted()
            source = sampling.noise_scaling(sigmas[step], noise, latent_image)
            both = torch.cat([source, source + moved * scales[step]])
            model.noise = torch.cat([noise, noise])
            source, target = model(both, sigmas[step].expand(len(both)), mask, **extra_args).chunk(2)
            return source, target

        calls = (len(sigmas) - 1) * edit.averages
        with model_trange(calls, disable=disable_pbar) as bar:

            def on_call(call: int, denoised: Tensor, x: Tensor) -> None:
                bar.update()
                if callback is not None:
                    callback(call, denoised, x, calls)

            return flow_edit(latent_image, sigmas / scales, denoise, draw, edit.averages, on_call)


def edit_flow(
    model: ModelPatcher,
    prompts: Prompts,
    edit: FlowEdit,
    sigmas: Tensor,
    latent: Mapping[str, Any],
    layers: str,
    asked_by: str,
    choice: Choice = ALL_HEADS,
) -> Tensor:
    """The samples of the edited ``latent``. SIGMAS, LATENT as ComfyUI's; ``layers``, ``choice`` as in
    :class:`.editing.Edit`.

    Raises:
        ValueError: ``model`` is no flow model, or an input does not fit the others.
        UnpairedBranchError, UnknownModelError, NoSuchSiteError: with ``layers``, as in :mod:`.editing`.
    """
    require_editable(model, latent, asked_by)
    _require_flow(model)
    sigmas = _levels_left(model, sigmas, edit.skip_steps)
    samples = _clip(model, latent)
    both = Edit(layers, "map", cfg=edit.target_cfg, source_cfg=edit.source_cfg, choice=choice)
    guider = EditGuider(model, prompts, both, samples.shape, asked_by)
    with explain_unfit_inputs(model, {"samples": samples}, **vars(prompts)):
        edited = guider.sample(
            torch.zeros_like(samples),
            samples,
            FlowEditSampler(edit, latent.get("batch_index")),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=prepare_callback(model, (len(sigmas) - 1) * edit.averages),
            disable_pbar=not PROGRESS_BAR_ENABLED,
            seed=edit.seed,
        )
    return edited.to(intermediate_device())


def _require_flow(model: ModelPatcher) -> None:
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, CONST | COSMOS_RFLOW) or isinstance(sampling, IMG_TO_IMG_FLOW):
        raise ValueError(
            f"model: FlowEdit needs a flow model, such as Flux, SD3.5, Qwen-Image, Wan, LTXV or HunyuanVideo, but "
            f"this one ({type(model.model.model_config).__name__}) is not one. Use EntropyGuidedEdit instead, for a "
            "real clip with BilateralDDIMInvert before it."
        )


def _levels_left(model: ModelPatcher, sigmas: Tensor, skipped: int) -> Tensor:
    """The levels of the steps that are taken."""
    require_falling(sigmas)
    require_levels(model, sigmas)
    if sigmas[-1] != 0:
        raise ValueError(
            f"sigmas end at {float(sigmas[-1]):.5g}, expected 0: the edit would stop halfway. Connect the scheduler "
            "itself, without SplitSigmas."
        )
    kept = torch.cat([sigmas[:1], sigmas[1:][sigmas.diff() < 0]])  # a step that goes nowhere moves nothing
    if skipped >= len(kept) - 1:
        raise ValueError(
            f"skip_steps is {skipped}, but sigmas hold {len(kept) - 1} steps, so none would be left. Lower skip_steps, "
            "or raise the scheduler's steps."
        )
    return kept[skipped:]


def _clip(model: ModelPatcher, latent: Mapping[str, Any]) -> Tensor:
    if not latent["samples"].any():
        raise ValueError(
            "latent_image is empty (all zeros), but FlowEdit changes a picture or clip that is there. Connect VAE "
            "Encode, or the latent of a sampler."
        )
    samples, form = samples_for(model, latent), model.get_model_object("latent_format")
    channels, dimensions = form.latent_channels, form.latent_dimensions
    if samples.ndim != 2 + dimensions or samples.shape[1] != channels:
        axes = {1: "length", 2: "height, width", 3: "frames, height, width"}[dimensions]
        raise ValueError(
            f"latent_image has shape {tuple(latent['samples'].shape)}, but this model "
            f"({type(model.model.model_config).__name__}) has latents of (batch, {channels}, {axes}). Encode the "
            "picture or clip with the VAE of this model."
        )
    return samples
