"""Stops a run at the first step whose prediction contains NaN or infinity."""

from __future__ import annotations

from torch import Tensor


class NotFiniteError(ValueError):
    """A model's prediction contains NaN or infinity; the message gives the step and what to do."""


def require_finite_prediction(prediction: Tensor, step: int, sigmas: Tensor, asked_by: str = "") -> None:
    """NotFiniteError where ``prediction``, of a model at ``step`` of a run along ``sigmas``, holds NaN or infinity."""
    finite = prediction.isfinite()
    if finite.all():
        return
    bad = prediction[~finite]
    raise NotFiniteError(
        f"{asked_by and f'{asked_by}: '}at step {step} of {len(sigmas) - 1} (noise level {sigmas[step]:.5g}) the "
        f"model's prediction holds {bad[0].item()}, in {len(bad):,} of {prediction.numel():,} values{_where(finite)}; "
        "expected finite numbers. Run the model in bf16 or fp32 (ComfyUI's --bf16-unet or --fp32-unet, or "
        "ModelComputeDtype), lower cfg, or remove LoRAs and patches one by one to find the one that overflows."
    )


def step_at(sigma: Tensor, sigmas: Tensor) -> int:
    """The step of a run along ``sigmas`` that is at the noise level ``sigma``, or next to it."""
    return int((sigmas - sigma).abs().argmin())


def _where(finite: Tensor) -> str:
    """In which rows, where not in all; of a video latent in which frames."""
    axis = 2 if finite.ndim == 5 and finite.shape[2] > 1 else 0  # pictures with video latents have one frame each
    size = finite.shape[axis]
    places = [i for i, each in enumerate(finite.transpose(0, axis).flatten(1).all(1).tolist()) if not each]
    if len(places) == size:
        return ""
    return f" (frame {', '.join(map(str, places[:8]))}{', …' if len(places) > 8 else ''} of {size})"
