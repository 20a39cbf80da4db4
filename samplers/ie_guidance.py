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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.perturbation import IDENTITY, UNIFORM, CopyPerturbation
from ..attention.registry import SELECTABLE, AttentionRegistry, selector_for
from ..attention.sites import Site
from ..attention.steps import is_between
from ..attention.tap import tap
from ..attention.wrappers import put_wrappers
from .branches import Combination, StepBranches, Variant, combined
from .cost import cost_of_step, watch_cost

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
    of ``positive`` (Lin et al., arXiv 2305.08891, §3.4): both (rows, ...) predictions of the clean latent."""
    if rescale == 0:
        return guided
    axes = list(range(1, guided.ndim))
    ratio = positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
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
    technique = CopyPerturbation()
    clone, sites = tap(
        watch_cost(model),
        technique,
        layers=selector_for(model, registry, asked_by),
        kinds=SELECTABLE,
        asked_by=asked_by,
        start_percent=start_percent,
        end_percent=end_percent,
    )
    if scale == 0:
        return model.clone()
    formula = FORMULAS[guidance]
    guided = _Guided(technique, formula, scale, rescale, start_percent, end_percent, f"{asked_by} ({guidance})", sites)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _WRAPPER, guided.predict)
    put_wrappers(clone, _WRAPPER, {WrappersMP.OUTER_SAMPLE: _innermost})
    return clone


def _innermost(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE: guidance is part of a prediction, so whoever skips predictions (LazyCache) comes before it.

    The options are of this run alone.
    """
    options = executor.class_obj.model_options["transformer_options"]
    predictors = dict(options["wrappers"][WrappersMP.PREDICT_NOISE])
    ours = predictors.pop(_WRAPPER)
    options["wrappers"] = {**options["wrappers"], WrappersMP.PREDICT_NOISE: {**predictors, _WRAPPER: ours}}
    return executor(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class _Guided:
    """What a model carries: a wrapper around every prediction of a guider."""

    technique: CopyPerturbation
    formula: Formula
    scale: float
    rescale: float
    start_percent: float
    end_percent: float
    asked_by: str
    sites: Sequence[Site]

    def predict(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        """PREDICT_NOISE: the guider's prediction of the clean latent (rows, ...), guided."""
        guider = executor.class_obj
        sampling = guider.inner_model.model_sampling
        if not is_between(float(timestep.flatten()[0]), self.start_percent, self.end_percent, sampling):
            return executor(x, timestep, model_options, seed)
        step = StepBranches(
            [*self.formula.difference, *([C_A] if self.rescale else [])],
            self.formula.positive,
            self.technique,
            guider.conds,
            model_options.get("context_handler"),
        )
        with cost_of_step(model_options, self.sites, self.asked_by) as options:
            guided = executor(x, timestep, {**options, "context_handler": step}, seed)
        if step.missing:
            raise MissingBranchError(
                f"{self.asked_by} needs the {' and the '.join(sorted(step.missing))} conditioning, but "
                f"{type(guider).__name__} did not evaluate it with the others of this step. At cfg 1 ComfyUI leaves "
                "out the negative: raise cfg, or choose a guidance without it, such as U-I."
            )
        if self.formula.difference:
            guided = guided + self.scale * combined(self.formula.difference, step.outputs)
        return rescaled(guided, step.outputs[C_A], self.rescale) if self.rescale else guided
