"""One-shot tuning: an inflated image model learns the motion of one clip (EI²; Tune-A-Video, arXiv 2212.11565, §4.3).

Loss: ‖ε − ε_θ(x_t, t, c)‖² on the clip's frames, noised independently to one level t, uniform over the timesteps.
Tuned: the inserted modules, and W_q of the frames' and the text's attention, as something that is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..attention.forms import InflationWeights, Record, find_inflation, modules_for
from ..attention.inflation import Inflation, Inserted, base_of
from ..attention.keys import INSERTED, OVERRIDE
from ..techniques.stam import STAM, keep_unit, tensors_of
from .loop import Group, History, Schedule, TrainingError, count, fit
from .memory import needed_for, require
from .sampler import Denoiser, Precision, autograd_enabled, dtype_of, train_in_run, trainable

ASKED_BY = "OneShotTune"
GATE_RATE = 100.0
"""The gates' learning rate over the others'. AdamW moves a weight by about the rate a step: 500 steps at 3e-5 would
leave a scalar that starts at 0 at 0.015, and STAM closed."""


@dataclass(frozen=True)
class Settings:
    steps: int = 500
    learning_rate: float = 3e-5
    batch_frames: int = 0
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """``parameters``: how many were tuned; ``needed``: bytes estimated before the first step; ``dtype``: computed
    in."""

    weights: InflationWeights
    history: History
    parameters: int
    needed: int
    dtype: torch.dtype


def tune(
    model: ModelPatcher,
    positive: list,
    latent: dict[str, Any],
    settings: Settings,
    after_step: Callable[[History], None] = lambda _: None,
) -> Tuned:
    """Tune an inflated ``model`` on the clip ``latent``, which ``positive`` describes; the model is not changed.

    Continues from the weights it was inflated with. ``after_step`` is called after every step and may raise to stop.

    Raises:
        TrainingError: the model is not inflated, the latent is not a clip, out of memory, or the loss is NaN.
    """
    record = find_inflation(model)
    if record is None:
        raise TrainingError(
            "model: expected an inflated model, got a plain one. Put STAMInflate or TuneAVideoInflate before "
            "OneShotTune."
        )
    if settings.batch_frames == 1:
        raise TrainingError(
            "batch_frames: expected 0 (all of the clip) or 2 and more, got 1: one frame shows no motion. Set it to "
            "0, or 2."
        )
    dtype = dtype_of(settings.precision)
    with autograd_enabled():
        copied = trainable(model, dtype)
        modules = _trained_modules(record, settings.seed).to(copied.load_device)
        _put_in(copied, modules, record)

        def train(denoiser: Denoiser) -> tuple[int, History]:
            if settings.gradient_checkpointing:
                denoiser.enable_checkpointing()
            loss_of = _Loss(denoiser, settings)
            needed = _require_memory(loss_of, modules, settings)
            groups: list[Group] = [
                {"params": [p for name, p in modules.named_parameters() if not name.endswith("gate")]},
                {"params": [p for name, p in modules.named_parameters() if name.endswith("gate")], "rate": GATE_RATE},
            ]
            groups = [group for group in groups if group["params"]]
            return needed, fit(groups, loss_of, Schedule(settings.steps, settings.learning_rate), after_step)

        needed, history = train_in_run(copied, [positive], latent, dtype, train, ASKED_BY)
    frames = len(latent["samples"])
    before = record.weights.steps if record.weights else 0
    weights = InflationWeights(record.form, base_of(model), _tensors(modules, record), before + settings.steps, frames)
    return Tuned(weights, history, count(modules.parameters()), needed, dtype)


class _Loss:
    def __init__(self, denoiser: Denoiser, settings: Settings) -> None:
        self.frames = len(denoiser.clean)
        self.batch = min(settings.batch_frames or self.frames, self.frames)
        self._denoiser, self._generator = denoiser, torch.Generator().manual_seed(settings.seed)

    def __call__(self, _step: int) -> Tensor:
        """The loss of ``batch`` neighbouring frames."""
        first = int(torch.randint(self.frames - self.batch + 1, (), generator=self._generator))
        share = float(torch.rand((), generator=self._generator))
        shape = (self.batch, *self._denoiser.clean.shape[1:])
        noise = torch.randn(shape, generator=self._generator)
        return self.at(range(first, first + self.batch), share, noise)

    def at(self, frames: range, share: float, noise: Tensor) -> Tensor:
        return self._denoiser.squared_error(frames, noise, self._denoiser.sigma_at(share)).mean()

    def of_first(self, frames: int) -> Tensor:
        """A loss that draws nothing from the generator."""
        return self.at(range(frames), 0.5, torch.zeros(frames, *self._denoiser.clean.shape[1:]))


def _trained_modules(record: Record, seed: int) -> Inserted:
    """The modules with weights to be trained, fp32; what is added to W_q starts at 0."""
    form, generator = record.form, torch.Generator().manual_seed(seed)
    modules = modules_for(form, record.layers, record.weights, generator, True, {"attention": _attention})
    for _, module in modules.items():
        if isinstance(module, STAM):
            keep_unit(module, form.norm)
    return modules.requires_grad_(True)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, transformer_options: Any = None) -> Tensor:
    """ComfyUI's, in the way that a tap leads here."""
    override = (transformer_options or {}).get(OVERRIDE)
    if override is None:
        return attention_pytorch(q, k, v, heads)
    return override(attention_pytorch, q, k, v, heads, transformer_options=transformer_options)


def _put_in(copied: ModelPatcher, modules: Inserted, record: Record) -> None:
    """``modules`` in the place of those that the copied model came with."""
    options = copied.model_options["transformer_options"]
    *others, last = options[INSERTED]
    options[INSERTED] = (*others, Inflation(last.name, last.position, modules, 1.0, record))


def _require_memory(loss_of: _Loss, modules: nn.Module, settings: Settings) -> int:
    """Bytes that a step will take beside the model; TrainingError where so many are not free."""
    needed = needed_for(loss_of.of_first, loss_of.batch, count(modules.parameters()))
    cures = ["take a smaller or shorter latent_image", "inflate fewer layers"]
    if not settings.gradient_checkpointing:
        cures.insert(0, "switch gradient_checkpointing on")
    if loss_of.batch > 4:
        cures.insert(0, f"set batch_frames to {max(2, loss_of.batch // 2)}")
    require(needed, f"Tuning on {loss_of.batch} frames at a time", cures)
    return needed


def _tensors(modules: Inserted, record: Record) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        if isinstance(module, STAM):
            own = tensors_of(module, record.form.norm)
        else:
            own = {key: x.detach().clone() for key, x in module.state_dict().items()}
        tensors |= {f"{name}.{key}": x.cpu() for key, x in own.items()}
    return tensors
