"""What every input must be: within its schema's limits, and what its type promises.

ComfyUI compares numbers with their limits in widgets alone, where NaN passes, and looks at nothing that comes over a
link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy_api.latest import io
from torch import Tensor

from ..attention.forms import InflationWeights
from ..attention.registry import AttentionRegistry
from ..samplers.trajectory import Trajectory
from ..techniques.kept import Momentum
from ..techniques.prompt_to_prompt import Alignment
from ..training.ge_adapter import GEAdapter


class InputError(ValueError):
    """An input is not what it must be; the text begins with its name."""


def require(asked: io.Input, value: Any, owner: type[io.ComfyNode]) -> None:
    """InputError where ``value`` is not what ``asked``, an input of ``owner``, must be."""
    name = asked.id
    if value is None:
        if asked.optional:
            return
        raise InputError(
            f"{name} is empty, expected {asked.get_io_type()}: the node before it returned nothing, as a loader does "
            "for parts that its file lacks. Connect another one."
        )
    if isinstance(asked, io.Float.Input | io.Int.Input):
        _require_number(asked, value)
    elif isinstance(asked, io.Combo.Input):
        # files come and go: nodes that list them look themselves
        looks = owner.validate_inputs.__func__ is not io.ComfyNode.validate_inputs.__func__  # type: ignore[attr-defined]
        if not looks and value not in asked.options:
            raise InputError(f"{name} is {value!r}, expected one of: {', '.join(map(str, asked.options))}.")
    elif isinstance(asked, io.String.Input | io.Boolean.Input):
        kind, words = (str, "a text") if isinstance(asked, io.String.Input) else (bool, "true or false")
        if not isinstance(value, kind):
            raise InputError(f"{name} is {value!r}, expected {words}.")
    elif asked.get_io_type() in _TYPED:
        _TYPED[asked.get_io_type()](name, value)


def _require_number(asked: Any, value: Any) -> None:
    whole = isinstance(asked, io.Int.Input)
    fits = isinstance(value, int) or (isinstance(value, float) and not whole)
    if not fits or not asked.min <= value <= asked.max:  # NaN compares with nothing
        kind = "a whole number" if whole else "a number"
        raise InputError(
            f"{asked.id} is {value}, expected {kind} from {asked.min} to {asked.max}. Change it, or what is linked to "
            "it."
        )


def require_finite(name: str, x: Tensor, cure: str) -> None:
    """InputError where ``x`` holds NaN or infinity."""
    if not x.isfinite().all():
        bad = x[~x.isfinite()]
        raise InputError(
            f"{name} holds {bad[0].item()} ({len(bad)} of {x.numel()} values), expected finite numbers. {cure}"
        )


def _shape(x: Any) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def _require_latent(name: str, latent: Any) -> None:
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if samples is None:
        raise InputError(f"{name} holds no samples, expected a LATENT, from VAE Encode or an empty latent node.")
    for part in samples.unbind() if getattr(samples, "is_nested", False) else [samples]:
        if part.numel() == 0 or part.ndim < 3:
            raise InputError(
                f"{name} has {_shape(part)}, expected (frames, channels, height, width) of a picture model or (batch, "
                "channels, frames, height, width) of a video model, none of them 0."
            )
        if not part.is_floating_point():
            raise InputError(f"{name} is {part.dtype}, expected floating point numbers, as VAE Encode gives them.")
        require_finite(name, part, "The node before it overflowed: try it in fp32.")
    if (mask := latent.get("noise_mask")) is not None:
        _require_mask(f"{name}'s noise mask", mask, dimensions=(2, 3, 4, 5))
    if getattr(samples, "is_nested", False) or (indices := latent.get("batch_index")) is None:
        return
    if len(indices) != len(samples) or any(index < 0 for index in indices):
        raise InputError(
            f"{name} has batch_index {list(indices)} for {len(samples)} items, expected a number of 0 or more for "
            "each. Make it with LatentFromBatch or RepeatLatentBatch."
        )


def _require_conditioning(name: str, conditioning: Any) -> None:
    if not isinstance(conditioning, list | tuple) or not conditioning:
        raise InputError(
            f"{name} holds no prompt, expected at least one. Connect a text encoder, such as CLIPTextEncode."
        )
    for text, *_ in conditioning:
        if not isinstance(text, Tensor) or text.ndim != 3 or text.numel() == 0:
            raise InputError(
                f"{name} holds a prompt of {_shape(text)}, expected (rows, tokens, channels), none of them 0. Connect "
                "the text encoder of this model."
            )
        require_finite(name, text, "Encode the prompt again, with a text encoder in fp32.")


def _require_sigmas(name: str, sigmas: Any) -> None:
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1:
        raise InputError(f"{name} has {_shape(sigmas)}, expected a list of noise levels. Connect a scheduler node.")
    if not sigmas.is_floating_point():
        raise InputError(f"{name} is {sigmas.dtype}, expected floating point numbers. Connect a scheduler node.")
    require_finite(name, sigmas, "Connect a scheduler node of this model.")
    if (sigmas < 0).any():
        raise InputError(
            f"{name} holds the noise level {sigmas.min():g}, expected 0 or more. Connect a scheduler node."
        )


def _require_images(name: str, images: Any) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[-1] not in (3, 4) or images.numel() == 0:
        raise InputError(f"{name} has {_shape(images)}, expected (frames, height, width, 3 or 4), none of them 0.")
    require_finite(name, images, "The node before it overflowed: try VAE Decode in fp32.")


def _require_mask(name: str, mask: Any, dimensions: Sequence[int] = (2, 3)) -> None:
    if not isinstance(mask, Tensor) or mask.ndim not in dimensions or mask.numel() == 0:
        raise InputError(
            f"{name} has {_shape(mask)}, expected (height, width) or (frames, height, width), none of them 0."
        )
    require_finite(name, mask, "Draw the mask again.")
    if mask.min() < 0 or mask.max() > 1:
        raise InputError(f"{name} goes from {mask.min():g} to {mask.max():g}, expected values from 0 to 1.")


def _require_noise(name: str, noise: Any) -> None:
    if not hasattr(noise, "generate_noise") or not hasattr(noise, "seed"):
        raise InputError(f"{name} is {type(noise).__name__}, expected NOISE, from RandomNoise or a noise node.")


def _require_vision(name: str, output: Any) -> None:
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.numel() == 0:
        raise InputError(f"{name} has {_shape(hidden)}, expected (frames, tokens, channels). Connect CLIPVisionEncode.")
    require_finite(name, hidden, "Encode the pictures again, in fp32.")


def _require_clip(name: str, clip: Any) -> None:
    if not hasattr(clip, "tokenize") or not hasattr(clip, "encode_from_tokens_scheduled"):
        raise InputError(f"{name} is {type(clip).__name__}, expected CLIP, from a checkpoint loader or CLIPLoader.")


def _require_encoder(name: str, clip_vision: Any) -> None:
    if not hasattr(clip_vision, "encode_image") or not hasattr(clip_vision, "model_type"):
        raise InputError(f"{name} is {type(clip_vision).__name__}, expected CLIP_VISION, from Load CLIP Vision.")


def _require_vae(name: str, vae: Any) -> None:
    if not hasattr(vae, "encode") or not hasattr(vae, "decode"):
        raise InputError(f"{name} is {type(vae).__name__}, expected VAE, from a checkpoint loader or Load VAE.")


def _require_a(kind: type, source: str) -> Callable[[str, Any], None]:
    def require(name: str, value: Any) -> None:
        if not isinstance(value, kind):
            raise InputError(f"{name} is {type(value).__name__}, expected the output of {source}. Connect that.")

    return require


_TYPED: dict[str, Callable[[str, Any], None]] = {
    "LATENT": _require_latent,
    "CONDITIONING": _require_conditioning,
    "SIGMAS": _require_sigmas,
    "IMAGE": _require_images,
    "MASK": _require_mask,
    "NOISE": _require_noise,
    "CLIP_VISION_OUTPUT": _require_vision,
    "CLIP_VISION": _require_encoder,
    "CLIP": _require_clip,
    "VAE": _require_vae,
    "MODEL": _require_a(ModelPatcher, "a model loader"),
    "SAMPLER": _require_a(Sampler, "KSamplerSelect"),
    "PROMPT_ALIGNMENT": _require_a(Alignment, "AlignPrompts"),
    "ATTENTION_REGISTRY": _require_a(AttentionRegistry, "EntropyRegister or SelectAttentionLayers"),
    "STAM_WEIGHTS": _require_a(InflationWeights, "OneShotTune or LoadSTAM"),
    "MOMENTUM": _require_a(Momentum, "MomentumOfRun or LoadMomentum"),
    "TRAJECTORY": _require_a(Trajectory, "BilateralDDIMInvert, with keep_trajectory on"),
    "GE_ADAPTER": _require_a(GEAdapter, "GEAdapterTrain or LoadGEAdapter"),
}
