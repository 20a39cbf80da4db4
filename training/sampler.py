"""Training inside a sampling run: the model as a sampler sees it, with every patch and module that is on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import comfy.model_management as management
import torch
from comfy.conds import CONDConstant
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider, Sampler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.inflation import beside, inflations_of
from ..attention.keys import ANY_ORDER, HOLD, INSERTED, LORAS, OVERRIDE
from ..attention.wrappers import put_wrappers
from ..samplers.latents import samples_for
from ..samplers.unfit import explain_unfit_inputs
from ..samplers.unguided import UnguidedGuider
from .frame_tokens import join_tokens
from .loop import TrainingError

Result = TypeVar("Result")
Precision = Literal["auto", "fp32", "bf16"]
LEVELS = 1000
"""Noise levels that a training run is said to go through."""


def dtype_of(precision: Precision) -> torch.dtype:
    """``auto`` is bf16 where a GPU computes in it, else fp32."""
    if precision == "auto":
        precision = "bf16" if management.should_use_bf16(management.get_torch_device()) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def trainable(model: ModelPatcher, dtype: torch.dtype) -> ModelPatcher:
    """A copy of ``model``, weights and all, through which gradients pass; its own weights ask for none.

    To be called, and used, in :func:`autograd_enabled`.
    """
    copied = _with_own_weights(model)
    copied.set_model_compute_dtype(dtype)
    copied.model.requires_grad_(False)
    _own_additions(copied)
    options = copied.model_options["transformer_options"]
    options[ANY_ORDER] = True
    options[OVERRIDE] = _differentiable(options.get(OVERRIDE))
    put_wrappers(copied, "coherence.training", {WrappersMP.APPLY_MODEL: _once_a_loss})
    return copied


class Held(ExitStack):
    """What a model call put on modules, which its backward pass needs again."""

    is_taken = False

    def clear(self) -> None:
        """Undo what the last call left, before the next."""
        self.close()
        self.is_taken = False


def recompute_blocks(diffusion_model: nn.Module) -> Held:
    """Gradient checkpointing: from now on blocks are recomputed in the backward pass instead of being stored. What is
    returned belongs under HOLD of the transformer_options of every call with a gradient."""
    for module in diffusion_model.modules():
        # these get transformer_options that nobody writes into later, or none
        if isinstance(module, BasicTransformerBlock | ResBlock):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return Held()


def _once_a_loss(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """APPLY_MODEL, under gradient checkpointing: a second call would find on the modules what the first one left."""
    held = transformer_options.get(HOLD)
    if held is not None:
        if held.is_taken:
            raise TrainingError(
                "gradient_checkpointing needs one model call per step, but this step takes several: the prompts in "
                "positive do not fit into one call, or the model has context windows. Use one prompt and no windows "
                "(batch_frames shortens a step's clip), or switch gradient_checkpointing off."
            )
        held.is_taken = True
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _with_own_weights(model: ModelPatcher) -> ModelPatcher:
    """A clone whose weights are its own: loaded anew where its loader said how, copied where it did not."""
    if model.cached_patcher_init is not None:
        return model.clone(force_deepcopy=True)
    with torch.inference_mode():  # as where it is loaded: quantised weights that move outside cannot be loaded again
        management.unload_model_and_clones(model)  # else patches would be copied with the weights, and patched in again
    config = model.model.model_config  # answers None to whatever it lacks, __deepcopy__ too; nobody writes into it
    # quantised weights wrap others and own no memory that deepcopy could copy
    wrapped = (weight for weight in model.model.parameters() if type(weight) is not nn.Parameter)
    known: dict[int, Any] = {id(weight): nn.Parameter(weight.detach().clone(), False) for weight in wrapped}
    copied = copy.deepcopy(model.model, {id(config): config} | known)
    fresh = type(model)(copied, model.load_device, model.offload_device)
    return model.clone(model_override=fresh.get_clone_model_override())


def _own_additions(copied: ModelPatcher) -> None:
    """What nodes of this pack put on a model was made in inference mode, as nodes are; copies of it are not."""
    options = copied.model_options["transformer_options"]
    if inserted := inflations_of(options):
        own = [replace(each, modules=copy.deepcopy(each.modules).to(copied.load_device)) for each in inserted]
        options[INSERTED] = tuple(own)
    for each in inserted:
        copied.set_additional_models(beside(each), [])
    if LORAS in options:
        options[LORAS] = copy.deepcopy(options[LORAS])


def _differentiable(override: Callable | None) -> Callable:
    """An attention override through which gradients pass; another pack's runs inside, if they pass there, too.

    ComfyUI's own overrides choose a faster attention (ModelAttentionBackend), and not all of these have a backward
    pass. Its default on CPU writes into its own intermediate results.
    """
    theirs = None if getattr(override, "__module__", "").startswith("comfy.") else override

    def attend(_func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        if theirs is not None:
            out = theirs(attention_pytorch, *args, **kwargs)
            if out.requires_grad or not any(isinstance(x, Tensor) and x.requires_grad for x in args):
                return out
        return attention_pytorch(*args, **kwargs)

    return attend


@contextmanager
def autograd_enabled() -> Iterator[None]:
    """Nodes run in inference mode, whose tensors autograd refuses; ComfyUI's models ask whether they are trained."""
    was_training = management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        management.in_training = True
        try:
            yield
        finally:
            management.in_training = was_training


class Denoiser:
    """The model during training. ``clean``: the latents in the model's scale, (frames, channels, height, width)."""

    def __init__(self, guider: Any, clean: Tensor, extra_args: dict[str, Any], dtype: torch.dtype) -> None:
        self.clean, self.sampling = clean, guider.inner_model.model_sampling
        self._guider, self._extra_args, self._dtype = guider, extra_args, dtype
        self._prompts = list(guider.conds.values())
        self._told = self._prompts[0]
        self._held: Held | None = None

    def enable_checkpointing(self) -> None:
        """As :func:`recompute_blocks`."""
        self._held = recompute_blocks(self._guider.inner_model.diffusion_model)

    def close(self) -> None:
        """Undo what the last call left on the modules for its backward pass."""
        if self._held is not None:
            self._held.clear()

    def sigma_at(self, share: float) -> float:
        """The noise level at a share of sampling, 0 pure noise: for uniform shares, of uniform timesteps."""
        return min(float(self.sampling.percent_to_sigma(share)), float(self.sampling.sigma_max))  # it has 1e9 for 0

    def tell(self, prompt: int, tokens: Tensor | None = None) -> None:
        """From now on the model is told the ``prompt``-th conditioning, with ``tokens`` before its text: (rows, count,
        width), a row for each frame or one for all."""
        self._told = [_prefixed(entry, tokens) for entry in self._prompts[prompt]]

    def squared_error(
        self, frames: Sequence[int], noise: Tensor, sigma: float, places: Sequence[int] | None = None
    ) -> Tensor:
        """((D(x) − x₀)/σ)² at every latent of ``frames``, x = x₀ noised by ``noise`` to ``sigma``: the squared error
        of ε for ε- and v-models, of the velocity for flow models.

        ``places``: of the frames in their clip, where ``clean`` holds several, and what the model is told is told of
        that clip; else ``clean`` is the clip.
        """
        self.close()
        clean = self.clean[list(frames)]
        self._guider.conds["positive"] = (
            [_of_frames(cond, frames, len(self.clean)) for cond in self._told] if places is None else self._told
        )
        level = torch.full((len(clean),), sigma, device=clean.device)
        noised = self.sampling.noise_scaling(level.reshape(-1, 1, 1, 1), noise.to(clean), clean, False)
        options = self._extra_args["model_options"]
        told = {**options["transformer_options"], "ad_params": {"sub_idxs": [*(places or frames)]}}
        if self._held is not None:
            told[HOLD] = self._held
        device = clean.device.type
        with torch.autocast(device, self._dtype, enabled=self._dtype is not torch.float32):
            denoised = self._guider(
                noised, level, **{**self._extra_args, "model_options": {**options, "transformer_options": told}}
            )
        return ((denoised.float() - clean) / sigma).square()


def _of_frames(cond: dict[str, Any], frames: Sequence[int], length: int) -> dict[str, Any]:
    """A processed conditioning for ``frames`` of a clip of ``length``: rows, which ComfyUI would deal out anew from
    the first, stay with their frames."""
    if len(frames) == length:
        return cond

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[[frame % len(value) for frame in frames]] if value.ndim and len(value) > 1 else value
        return list(map(of, value)) if type(value) is list else value

    theirs = {
        name: each if isinstance(each, CONDConstant) or not hasattr(each, "cond") else each._copy_with(of(each.cond))
        for name, each in cond["model_conds"].items()
    }
    return {**cond, "model_conds": theirs, **({"mask": of(cond["mask"])} if "mask" in cond else {})}


def _prefixed(entry: dict[str, Any], tokens: Tensor | None) -> dict[str, Any]:
    """A conditioning as ComfyUI's samplers have it, with tokens before its text."""
    if tokens is None:
        return entry
    text = entry["model_conds"]["c_crossattn"]
    joined = join_tokens([tokens.to(text.cond), text.cond])
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": type(text)(joined)}}


class _TrainingRun(Sampler, Generic[Result]):
    """``result``: what ``train`` gave, once sampled."""

    result: Result

    def __init__(self, train: Callable[[Denoiser], Result], dtype: torch.dtype) -> None:
        self._train, self._dtype = train, dtype

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False):
        denoiser = Denoiser(guider, latent_image.detach().clone().float(), extra_args, self._dtype)
        try:
            self.result = self._train(denoiser)
        finally:
            denoiser.close()
        return latent_image


def train_in_run(
    model: ModelPatcher,
    prompts: Sequence[list],
    latent: dict,
    dtype: torch.dtype,
    train: Callable[[Denoiser], Result],
    asked_by: str,
    is_steered: bool = False,
) -> Result:
    """What ``train`` gives, called within a sampling run of ``model`` (:func:`trainable`) on a LATENT and one or more
    CONDITIONINGs; the model is told the first until :meth:`Denoiser.tell`. ``asked_by``: the node, for the log.

    TrainingError where the latent is no clip, or a ControlNet is in the conditioning that was not made for training
    (``is_steered``, :mod:`.control`).
    """
    if not is_steered and any("control" in more for prompt in prompts for _, more in prompt):
        raise TrainingError(
            "positive has a ControlNet, expected a plain prompt: tuning learns from the clip alone. Connect the "
            "prompt from before the ControlNet; you can still use one when sampling."
        )
    samples = samples_for(model, latent).clone()
    if samples.ndim != 4 or len(samples) < 2:
        raise TrainingError(
            f"latent_image has shape {tuple(samples.shape)}, expected a clip of two frames or more, (frames, channels, "
            "height, width). Load a video, and encode its frames with VAEEncode."
        )
    names = ("positive", *(f"positive {number}" for number in range(1, len(prompts))))
    sampling = model.get_model_object("model_sampling")
    # a step may be at any level: what acts between two percentages of sampling finds some there
    levels = torch.tensor([float(sampling.percent_to_sigma(percent / LEVELS)) for percent in range(LEVELS + 1)])
    sigmas = levels.clamp(max=float(sampling.sigma_max))
    run = _TrainingRun(train, dtype)
    told = dict(zip(names, prompts, strict=True))
    sample_trainable(model, UnguidedGuider(model, asked_by), told, samples, run, sigmas)
    return run.result


def sample_trainable(
    model: ModelPatcher,
    guider: CFGGuider,
    prompts: Mapping[str, list],
    samples: Tensor,
    sampler: Sampler,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
) -> None:
    """A sampling run of ``guider`` on ``model`` (:func:`trainable`), loaded whole, in :func:`autograd_enabled`."""
    with torch.inference_mode():  # the others' memory is needed, but their weights must not move outside of it
        management.free_memory(1e20, model.load_device)
    management.load_models_gpu([model], memory_required=1e20, force_full_load=True)
    guider.inner_set_conds({name: _fresh(prompt) for name, prompt in prompts.items()})
    shown = {name: prompts[name] for name in ("positive", "negative") if name in prompts}
    with torch.random.fork_rng(devices=[]), explain_unfit_inputs(model, {"samples": samples}, **shown):
        guider.sample(
            torch.zeros_like(samples), samples, sampler, sigmas, denoise_mask=denoise_mask, disable_pbar=True, seed=0
        )


def _fresh(value: Any) -> Any:
    """Conditioning with tensors that autograd takes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(_fresh, value))
    if type(value) is dict:
        return {name: _fresh(each) for name, each in value.items()}
    return value
