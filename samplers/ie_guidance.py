"""IE-Adapt's guidance: §4.1, Eq. 4 and 5, and the strategies of suppl. 8.1.

At the registered layers, those of highest entropy, a branch's attention map A is replaced by the uniform map U or the
identity I. With D(c, M) the prediction from conditioning c with map M there, ∅ the negative, ω the guider's cfg and λ
the scale:

    pairs         D(∅,A) + ω (D(c,A) − D(∅,A)) + λ (D(c,+) − D(c,−))     [U−I], [A−I] (PAG's), [U−A]
    strategy 1    D(∅,A) + ω (D(c,A) − D(∅,I))
    strategy 3    D(∅,A) + ω (D(c,U) − D(∅,A)) + λ (D(c,A) − D(c,I))
    strategy 4    D(∅,A) + ω (D(c,U) − D(∅,A))

Strategy 2 is [A−I]. All of them are classifier-free guidance of some positive prediction, plus λ times a difference:
strategy 1 is that of D(c,A) + D(∅,A) − D(∅,I). So ω stays the guider's, and whatever else acts on CFG still does.
The factors add up to one: predicted noise, velocity and clean latent give the same.

Several guidances on one model add up, whichever node came first: CFG guides towards D(c,A) and what each of them
changes about it, and the differences are taken of the predictions, not of what another guidance made of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.registry import SELECTABLE, AttentionRegistry, choice_for
from ..attention.sites import family_of
from ..attention.steps import is_between
from ..attention.tap import tap
from ..attention.wrappers import put_wrappers
from ..techniques.perturbation import IDENTITY, UNIFORM, CopyPerturbation
from .branches import Combination, StepBranches, Variant, combined
from .told import meanwhile, told

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_WRAPPER = "coherence.guidance"

Guidance = Literal["U-I", "A-I", "U-A", "strategy 1", "strategy 3", "strategy 4"]
GUIDANCES = get_args(Guidance)

C_A, C_U, C_I = (Variant("positive", alpha) for alpha in (None, UNIFORM, IDENTITY))
N_A, N_I = (Variant("negative", alpha) for alpha in (None, IDENTITY))


class MissingBranchError(ValueError):
    """A guider did not evaluate a conditioning that a guidance needs."""


@dataclass(frozen=True)
class Formula:
    """``positive``: what CFG guides towards; ``difference``: what λ multiplies."""

    positive: Combination
    difference: Combination

    def owned_by(self, owner: Any) -> Formula:
        """The same of the copies that ``owner`` has made."""
        return Formula(*(_owned(each, owner) for each in (self.positive, self.difference)))


def _owned(combination: Combination, owner: Any) -> Combination:
    return {
        branch if branch.role is None else branch._replace(owner=owner): factor
        for branch, factor in combination.items()
    }


def together(positives: Iterable[Combination]) -> Combination:
    """What CFG guides towards where each of ``positives`` changes something about D(c,A)."""
    total = {C_A: 1.0}
    for each in positives:
        for branch, factor in [*each.items(), (C_A, -1)]:
            total[branch] = total.get(branch, 0) + factor
    return {branch: factor for branch, factor in total.items() if factor}


FORMULAS: dict[Guidance, Formula] = {
    "U-I": Formula({C_A: 1}, {C_U: 1, C_I: -1}),
    "A-I": Formula({C_A: 1}, {C_A: 1, C_I: -1}),
    "U-A": Formula({C_A: 1}, {C_U: 1, C_A: -1}),
    "strategy 1": Formula({C_A: 1, N_A: 1, N_I: -1}, {}),
    "strategy 3": Formula({C_U: 1}, {C_A: 1, C_I: -1}),
    "strategy 4": Formula({C_U: 1}, {}),
}


def rescaled(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """``guided`` with its standard deviation, over all axes but the first, moved by the share ``rescale`` towards that
    of ``positive`` (Lin et al., arXiv 2305.08891, §3.4): both (rows, ...) predictions of the clean latent. A row that
    is constant has no deviation to move and stays."""
    if rescale == 0:
        return guided
    axes = list(range(1, guided.ndim))
    spread = guided.std(axes, keepdim=True)
    ratio = torch.where(spread > 0, positive.std(axes, keepdim=True) / spread, 1)
    return guided * (rescale * ratio + (1 - rescale))


def guide(
    model: ModelPatcher,
    registry: AttentionRegistry,
    guidance: Guidance,
    scale: float,
    *,
    asked_by: str,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    rescale: float = 0.0,
) -> ModelPatcher:
    """A clone of ``model`` that samples with ``guidance`` at the layers that ``registry`` selects.

    ``scale`` is λ; at 0 the clone is as it was, whichever the guidance. ``rescale``: see :func:`rescaled`.
    Errors as of :func:`..attention.tap.tap`; RegistryError where no layer is selected, or the registry is of another
    model. While sampling, MissingBranchError where the guider leaves out a conditioning that the guidance needs.
    """
    layers, choice = choice_for(model, registry, asked_by)
    technique = CopyPerturbation(choice)
    clone, _ = tap(
        model,
        technique,
        layers=layers,
        kinds=SELECTABLE,
        asked_by=asked_by,
        start_percent=start_percent,
        end_percent=end_percent,
    )
    if scale == 0:
        return model.clone()
    formula = FORMULAS[guidance].owned_by(technique)
    guided = _Guided(formula, scale, rescale, start_percent, end_percent, f"{asked_by} ({guidance})")
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _WRAPPER, _Together((guided,)).predict)
    put_wrappers(clone, _WRAPPER, {WrappersMP.OUTER_SAMPLE: _innermost})
    return clone


def _innermost(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE: guidance is part of a prediction, so whoever skips predictions (LazyCache) comes before it; and
    all guidances are one.

    The options are of this run alone.
    """
    options = executor.class_obj.model_options["transformer_options"]
    predictors = dict(options["wrappers"].get(WrappersMP.PREDICT_NOISE, {}))
    if _WRAPPER in predictors:
        guidances = tuple(each for predict in predictors.pop(_WRAPPER) for each in predict.__self__.guidances)
        predictors[_WRAPPER] = [_Together(guidances).predict]
        options["wrappers"] = {**options["wrappers"], WrappersMP.PREDICT_NOISE: predictors}
    return executor(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class _Guided:
    """One guidance, when it acts and at which layers."""

    formula: Formula
    scale: float
    rescale: float
    start_percent: float
    end_percent: float
    asked_by: str

    def acts_at(self, timestep: Tensor, sampling: Any) -> bool:
        return is_between(float(timestep.flatten()[0]), self.start_percent, self.end_percent, sampling)

    @property
    def wanted(self) -> list[Variant]:
        """The branches it needs beside what CFG guides towards."""
        return [*self.formula.difference, *([C_A] if self.rescale else [])]

    def require_all(self, step: StepBranches, guider: Any) -> None:
        missing = sorted({branch.side for branch in step.missing & {*self.formula.positive, *self.wanted}})
        if missing:
            raise MissingBranchError(
                f"{self.asked_by} needs the {' and the '.join(missing)} conditioning, but "
                f"{type(guider).__name__} did not evaluate it with the others of this step. At cfg 1 ComfyUI leaves "
                "out the negative: raise cfg, or choose a guidance without it, such as U-I."
            )


@dataclass(frozen=True, eq=False)
class _Together:
    """What a model carries: a wrapper around every prediction of a guider."""

    guidances: tuple[_Guided, ...]

    @property
    def asked_by(self) -> str:
        return " and ".join(each.asked_by for each in self.guidances)

    def predict(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        """PREDICT_NOISE: the guider's prediction of the clean latent (rows, ...), guided."""
        guider = executor.class_obj
        acting = [each for each in self.guidances if each.acts_at(timestep, guider.inner_model.model_sampling)]
        if not acting:
            return executor(x, timestep, model_options, seed)
        step = StepBranches(
            [branch for each in acting for branch in each.wanted],
            together(each.formula.positive for each in acting),
            guider.conds,
            model_options.get("context_handler"),
            family_of(guider.inner_model.diffusion_model).one_row,
        )
        ours = {"context_handler": step, "model_function_wrapper": told(model_options.get("model_function_wrapper"))}
        with meanwhile(model_options, **ours):
            guided = executor(x, timestep, model_options, seed)
        for each in acting:
            each.require_all(step, guider)
        for each in acting:
            if each.formula.difference:
                guided = guided + each.scale * combined(each.formula.difference, step.outputs)
        for each in acting:
            if each.rescale:
                guided = rescaled(guided, step.outputs[C_A], each.rescale)
        return guided
