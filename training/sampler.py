"""Training inside a sampling run: the model as a sampler sees it, with every patch and module that is on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import comfy.model_management as management
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, Sampler
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..attention.run import HOLD
from ..samplers.latents import samples_for
from ..samplers.measure import GUIDANCE
from .frame_tokens import join_tokens
from .loop import TrainingError

Precision = Literal["auto", "fp32", "bf16"]


def dtype_of(precision: Precision) -> torch.dtype:
    """``auto`` is bf16 where a GPU computes in it, else fp32."""
    if precision == "auto":
        precision = "bf16" if management.should_use_bf16(management.get_torch_device()) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def trainable(model: ModelPatcher, dtype: torch.dtype, gradient_checkpointing: bool) -> ModelPatcher:
    """A copy of ``model``, weights and all, through which gradients pass; its own weights ask for none.

    To be called, and used, in :func:`grown_up_tensors`.
    """
    copied = _with_own_weights(model)
    for hook in GUIDANCE:
        copied.model_options.pop(hook, None)
    copied.set_model_compute_dtype(dtype)
    copied.model.requires_grad_(False)
    options = copied.model_options["transformer_options"]
    # ComfyUI's default on CPU writes into its own intermediate results
    options.setdefault("optimized_attention_override", _differentiable)
    if gradient_checkpointing:
        checkpoint_blocks(copied)
    return copied


def checkpoint_blocks(trained: ModelPatcher) -> None:
    """From now on ``trained``, of :func:`trainable`, computes its blocks twice instead of keeping them."""
    for module in trained.model.diffusion_model.modules():
        # these get transformer_options that nobody writes into later, or none
        if isinstance(module, BasicTransformerBlock | ResBlock):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def _with_own_weights(model: ModelPatcher) -> ModelPatcher:
    """A clone whose weights are its own: loaded anew where its loader said how, copied where it did not."""
    if model.cached_patcher_init is not None:
        return model.clone(force_deepcopy=True)
    management.unload_model_and_clones(model)  # else patches would be copied with the weights, and patched in again
    fresh = type(model)(copy.deepcopy(model.model), model.load_device, model.offload_device)
    return model.clone(model_override=fresh.get_clone_model_override())


def _differentiable(_func: Callable, *args, **kwargs) -> Tensor:
    return attention_pytorch(*args, **kwargs)


@contextmanager
def grown_up_tensors() -> Iterator[None]:
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
        self._held = ExitStack()

    def close(self) -> None:
        """Undo what the last call left for its backward pass."""
        self._held.close()

    def sigma_at(self, share: float) -> float:
        """The noise level at a share of sampling, 0 pure noise: for uniform shares, of uniform timesteps."""
        # ComfyUI's level at 0 is a billion
        return min(float(self.sampling.percent_to_sigma(share)), float(self.sampling.sigma_max))

    def tell(self, prompt: int, tokens: Tensor | None = None) -> None:
        """From now on the model is told the ``prompt``-th conditioning, with ``tokens`` before its text: (rows, count,
        width), a row for each frame or one for all."""
        self._guider.conds["positive"] = [_prefixed(entry, tokens) for entry in self._prompts[prompt]]

    def squared_error(
        self, frames: Sequence[int], noise: Tensor, sigma: float, places: Sequence[int] | None = None
    ) -> Tensor:
        """((D(x) − x₀)/σ)² at every latent of ``frames``, x = x₀ noised by ``noise`` to ``sigma``: the squared error
        of ε for ε- and v-models, of the velocity for flow models.

        ``places``: of the frames in their clip, where ``clean`` holds several; else ``frames``."""
        self.close()
        self._held = ExitStack()
        clean = self.clean[list(frames)]
        level = torch.full((len(clean),), sigma, device=clean.device)
        noised = self.sampling.noise_scaling(level.reshape(-1, 1, 1, 1), noise.to(clean), clean, False)
        options = self._extra_args["model_options"]
        told = {**options["transformer_options"], HOLD: self._held, "ad_params": {"sub_idxs": [*(places or frames)]}}
        device = clean.device.type
        with torch.autocast(device, self._dtype, enabled=self._dtype is not torch.float32):
            denoised = self._guider(
                noised, level, **{**self._extra_args, "model_options": {**options, "transformer_options": told}}
            )
        return ((denoised.float() - clean) / sigma).square()


def _prefixed(entry: dict[str, Any], tokens: Tensor | None) -> dict[str, Any]:
    """A conditioning as ComfyUI's samplers have it, with tokens before its text."""
    if tokens is None:
        return entry
    text = entry["model_conds"]["c_crossattn"]
    joined = join_tokens([tokens.to(text.cond), text.cond])
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": type(text)(joined)}}


class _TrainingRun(Sampler):
    def __init__(self, train: Callable[[Denoiser], None], dtype: torch.dtype) -> None:
        self._train, self._dtype = train, dtype

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False):
        denoiser = Denoiser(guider, latent_image.detach().clone().float(), extra_args, self._dtype)
        try:
            self._train(denoiser)
        finally:
            denoiser.close()
        return latent_image


def train_in_run(
    model: ModelPatcher, prompts: Sequence[list], latent: dict, dtype: torch.dtype, train: Callable[[Denoiser], None]
) -> None:
    """Call ``train`` within a sampling run of ``model`` (:func:`trainable`) on a LATENT and one or more CONDITIONINGs,
    of which the model is told the first until :meth:`Denoiser.tell`.

    TrainingError where the latent is no clip.
    """
    samples = samples_for(model, latent).clone()
    if samples.ndim != 4 or len(samples) < 2:
        raise TrainingError(
            f"latent_image has shape {tuple(samples.shape)}, expected a clip of two frames or more, (frames, channels, "
            "height, width). Load a video, and encode its frames with VAEEncode."
        )
    management.load_models_gpu([model], memory_required=1e20, force_full_load=True)
    guider = CFGGuider(model)
    names = ("positive", *(f"positive {number}" for number in range(1, len(prompts))))
    guider.inner_set_conds({name: _fresh(prompt) for name, prompt in zip(names, prompts, strict=True)})
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    with torch.random.fork_rng(devices=[]):
        guider.sample(torch.zeros_like(samples), samples, _TrainingRun(train, dtype), sigmas, disable_pbar=True, seed=0)


def _fresh(value: Any) -> Any:
    """Conditioning with tensors that autograd takes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(_fresh, value))
    if type(value) is dict:
        return {name: _fresh(each) for name, each in value.items()}
    return value
