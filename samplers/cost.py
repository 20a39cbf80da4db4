"""What a guided step costs beside a plain one: said once a run, in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..attention.branches import Branch, branches_of, originals
from ..attention.keys import COST_RUN, COST_STEP
from ..attention.prefix import is_patched, layers_before
from ..attention.sites import Site, layers_of
from ..attention.wrappers import put_wrappers
from .told import meanwhile

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_WRAPPER = "coherence.cost"


def watch_cost(model: ModelPatcher) -> ModelPatcher:
    """A clone of ``model`` whose runs and model calls :func:`cost_of_step` sees.

    What is tapped afterwards stays inside: a call that the tap runs in chunks of frames is one call here.
    """
    clone = model.clone()
    wrappers = {WrappersMP.OUTER_SAMPLE: _around_run, WrappersMP.APPLY_MODEL: _around_model_call}
    put_wrappers(clone, _WRAPPER, wrappers)
    return clone


@contextmanager
def cost_of_step(model_options: dict[str, Any], sites: Sequence[Site], guided_by: str) -> Iterator[None]:
    """Around a step with these model options: the first of ``guided_by`` in a run says what its calls cost.

    ``sites``: the perturbed layers.
    """
    options = model_options["transformer_options"]
    said: set[tuple] | None = options.get(COST_RUN)
    guidance = (guided_by, *(site.name for site in sites))
    if said is None or guidance in said:
        yield
        return
    said.add(guidance)
    step = _Step(sites)
    with meanwhile(options, **{COST_STEP: step}):
        yield
    logging.info("%s: %s", guided_by, step)


def _around_run(executor, *args, **kwargs):
    """OUTER_SAMPLE: a new run, of which nothing has been said."""
    options = executor.class_obj.model_options["transformer_options"]
    options[COST_RUN] = set()
    try:
        return executor(*args, **kwargs)
    finally:
        del options[COST_RUN]


def _around_model_call(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """APPLY_MODEL: one more call of the step that is looked at."""
    options = transformer_options or {}
    if COST_STEP not in options:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    with options[COST_STEP].call(executor.class_obj.diffusion_model, branches_of(options), is_patched(options)):
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


@dataclass(eq=False)
class _Step:
    """A step's model calls. Work is estimated as weights times the places they are used at: not attention's own."""

    sites: Sequence[Site]
    calls: list[tuple[Branch, ...]] = field(default_factory=list)
    distinct: list[int] = field(default_factory=list)
    prefix: float = 0.0

    @contextmanager
    def call(self, diffusion_model: nn.Module, branches: tuple[Branch, ...], patched: bool) -> Iterator[None]:
        self.calls.append(branches)
        self.distinct.append(len(branches) if patched else len(originals(branches)[0]))
        layers = layers_of(diffusion_model)
        before = layers_before(layers, {site.module for site in self.sites})
        work: dict[nn.Module, float] = {}

        def note(layer: nn.Module, _args: Any, out: Any) -> None:
            work[layer] = sum(p.numel() for p in layer.parameters()) * _places(out)

        with ExitStack() as stack:
            for layer in {*layers, *before}:
                stack.callback(layer.register_forward_hook(note).remove)
            yield
        self.prefix = sum(work.get(layer, 0.0) for layer in before) / max(1.0, sum(work.get(x, 0.0) for x in layers))

    def __str__(self) -> str:
        evaluated = sum(len(call) for call in self.calls)
        plain = len({branch[0] for call in self.calls for branch in call})
        done = sum(
            n * self.prefix + len(call) * (1 - self.prefix) for n, call in zip(self.distinct, self.calls, strict=True)
        )
        first = min(self.sites, key=lambda site: site.order).name
        return (
            f"{evaluated} branches a step in {len(self.calls)} model call{'s' if len(self.calls) > 1 else ''}; first "
            f"perturbed layer {first}, after about {self.prefix:.0%} of the work, which copies share where they are in "
            f"one call: about {done / max(1, plain):.2f}× the cost of CFG"
        )


def _places(out: Any) -> int:
    """How many tokens or pixels one row of a layer's output has; text and video of a transformer's together."""
    tensors = out if isinstance(out, tuple) else (out,)
    return sum(x[0].numel() // x.shape[-1 if x.ndim == 3 else 1] for x in tensors if isinstance(x, Tensor))
