"""What each attention layer is for: a run for each of them, with its map replaced (IE-Adapt §3.1, Figs. 2, 16 to 21).

All runs have the same noise. Before the perturbation begins they are one run: what the model predicted there is kept
and given again, as long as the sampler asks for it at the very same latent, so any sampler takes the same steps. Where
more than the model takes part in a prediction, such as guidance, a cache or a technique, it may count calls or keep
something of them, and every run calls the model at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.model_management import intermediate_device, throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from comfy.utils import PROGRESS_BAR_ENABLED
from latent_preview import prepare_callback
from torch import Tensor

from ..attention.registry import SELECTABLE
from ..attention.steps import is_between
from ..attention.tap import tap
from ..techniques.perturbation import Perturbation
from .latents import noise_for, require_falling, require_levels, samples_for
from .unfit import explain_unfit_inputs

MOST = 4
"""Sweeps of a model whose findings are kept."""
_OF_EVERY_RUN = ("transformer_options", "to_load_options", "sample_sigmas")
"""What ComfyUI writes into the options of a run whose model has nothing else in them but empty dictionaries."""
_OF_CONDITIONING = {"control", "hooks"}
"""What a conditioning may bring that sees calls."""
Seen = tuple[Tensor, ...]
Found = dict[str, dict[str, float]]
"""Layer → figure by name."""
_found: WeakKeyDictionary[Any, dict[str, Found]] = WeakKeyDictionary()
"""Model → key of a sweep, the latest last → what it has found, for the next one with the same inputs."""


@dataclass(frozen=True)
class Run:
    """What is sampled: CONDITIONINGs, NOISE, SAMPLER, SIGMAS (steps + 1,) and LATENT, as ComfyUI's."""

    positive: list
    negative: list
    cfg: float
    noise: Any
    sampler: Any
    sigmas: Tensor
    latent: Mapping[str, Any]


class Sweep:
    """The runs of one sweep, of ``runs`` in all; its progress is theirs.

    ``alpha``: the perturbation's (:mod:`..techniques.perturbation`).

    Raises:
        ValueError: an input does not fit the others.
        UnknownModelError, NoSuchSiteError, NoStepError: as in :mod:`..attention`.
    """

    def __init__(
        self,
        model: ModelPatcher,
        alpha: float,
        run: Run,
        runs: int,
        asked_by: str,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> None:
        require_falling(run.sigmas)
        require_levels(model, run.sigmas)
        self._model, self._alpha, self._run, self._asked_by = model, alpha, run, asked_by
        self._span = start_percent, end_percent
        self._samples = samples_for(model, run.latent)
        self._drawn = noise_for(run.noise, {**run.latent, "samples": self._samples})
        self._steps, self._done = len(run.sigmas) - 1, 0
        self._total = runs * self._steps
        self._preview = prepare_callback(model, self._total)
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def plain(self) -> Tensor:
        """The latent of the run without a perturbation. It comes first: the others begin as it does."""
        self._kept = []
        return self._sampled(_Keeping(self._model, self._kept, self._span))

    def without(self, layer: str) -> Tensor:
        """The latent of the run without the map of ``layer``."""
        throw_exception_if_processing_interrupted()
        assert self._kept is not None, "the plain run comes first"
        start, end = self._span
        perturbed, _ = tap(
            self._model,
            Perturbation(self._alpha),
            layers=layer,
            kinds=SELECTABLE,
            asked_by=self._asked_by,
            start_percent=start,
            end_percent=end,
        )
        return self._sampled(_Recalling(perturbed, self._kept))

    def compared(
        self, layers: Iterable[str], look: Callable[[Tensor], Seen], compare: Callable[[Seen, Seen], dict[str, float]]
    ) -> Found:
        """What ``compare`` says of the run without each of ``layers`` and the plain one, as ``look`` sees their
        latents. Layers that a sweep with the same inputs has tried, such as one that was cut short, do not run."""
        samples = self.plain()
        plain = look(samples)
        found = _kept(self._model, self._key(samples, plain))
        for layer in layers:
            if layer in found:
                self._done += 1
            else:
                found[layer] = compare(look(self.without(layer)), plain)
        return {layer: found[layer] for layer in layers}

    def _key(self, samples: Tensor, seen: Seen) -> str:
        """Of the inputs, which the plain run tells apart, and of what it does not depend on."""
        run, options = self._run, getattr(self._run.sampler, "extra_options", "")
        function = getattr(run.sampler, "sampler_function", run.sampler)
        sampler = getattr(function, "__name__", type(function).__name__)
        digest = hashlib.sha256(
            repr((self._alpha, self._span, run.cfg, run.sigmas.tolist(), sampler, options)).encode()
        )
        for part in (*(samples.unbind() if samples.is_nested else [samples]), *seen):
            digest.update(part.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _sampled(self, guider: CFGGuider) -> Tensor:
        run, before = self._run, self._done * self._steps
        guider.set_conds(run.positive, run.negative)
        guider.set_cfg(run.cfg)
        given = {"samples": self._samples}
        with explain_unfit_inputs(self._model, given, positive=run.positive, negative=run.negative):
            samples = guider.sample(
                self._drawn,
                self._samples,
                run.sampler,
                run.sigmas,
                denoise_mask=run.latent.get("noise_mask"),
                callback=lambda step, denoised, x, _: self._preview(before + step, denoised, x, self._total),
                disable_pbar=not PROGRESS_BAR_ENABLED,
                seed=run.noise.seed,
            )
        self._done += 1
        return samples.to(intermediate_device())


def _kept(model: ModelPatcher, key: str) -> Found:
    """To be filled in as the sweep goes on. Of two models that draw alike, each has its own."""
    sweeps = _found.setdefault(model.model, {})
    sweeps[key] = sweeps.pop(key, {})
    while len(sweeps) > MOST:
        del sweeps[next(iter(sweeps))]
    return sweeps[key]


def _is_alone(guider: CFGGuider, options: Mapping[str, Any]) -> bool:
    """Whether the model and the prompts are all that a prediction is made of: no node, no ControlNet and no hook of the
    sampler's sees the call."""
    told = {**options, **options.get("transformer_options", {})}
    beside = [value for name, value in told.items() if name not in _OF_EVERY_RUN]
    conds = [cond for each in guider.conds.values() for cond in each]
    return all(type(value) is dict and not value for value in beside) and not any(
        cond.keys() & _OF_CONDITIONING for cond in conds
    )


class _Keeping(CFGGuider):
    """Keeps what it is asked and what it predicts, until the perturbation would begin."""

    def __init__(self, model: ModelPatcher, kept: list[tuple[Tensor, Tensor]], span: tuple[float, float]) -> None:
        super().__init__(model)
        self._kept, self._span, self._keeps = kept, span, True

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        options = {} if model_options is None else model_options
        predicted = super().predict_noise(x, timestep, options, seed)
        acts = is_between(float(timestep.flatten()[0]), *self._span, self.inner_model.model_sampling)
        self._keeps = self._keeps and not acts and _is_alone(self, options)
        if self._keeps:
            self._kept.append((x.clone(), predicted.clone()))
        return predicted


class _Recalling(CFGGuider):
    """Gives what was kept, as long as it is asked the same."""

    def __init__(self, model: ModelPatcher, kept: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(model)
        self._left = iter(kept)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        asked, predicted = next(self._left, (None, None))
        if asked is not None and predicted is not None and torch.equal(asked, x):
            return predicted.clone()
        self._left = iter(())
        return super().predict_noise(x, timestep, {} if model_options is None else model_options, seed)
