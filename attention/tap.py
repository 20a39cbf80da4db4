"""The one tap into a model's attention.

A technique asks for some sites of a model between two percentages of sampling, and is then called at each of them
in place of the attention, with q, k and v after projection, knowing which site it is, which rows belong to which
branch and where the frames are. It returns the layer's output; ``proceed(q, k, v)`` runs whatever comes next: the
next technique, then what other packs put there (``attn1_replace``, ``optimized_attention_override``), then ComfyUI's
attention. So techniques stack, and other packs' patches go on working whichever node came first.

How it reaches the attention: a wrapper around every model call copies ``transformer_options``, gives the modules of
the wanted sites a forward pre-hook that writes the site into *their* copy, and sets an attention override that reads
it. Nothing outlives the call, nothing is written on the user's model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .sites import NoSuchSiteError, Site, list_sites, select_sites
from .technique import AttentionCall, Proceed, Technique

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# Keys in transformer_options. Some models splat these as keyword arguments: hence identifiers.
_TECHNIQUES, _RUN, _SITE = "coherence_techniques", "coherence_run", "coherence_site"
_WRAPPER = "coherence.tap"


@dataclass(frozen=True, eq=False)
class _Tapped:
    """A technique, where and when."""

    technique: Technique
    asked_by: str
    sites: frozenset[str]
    start_percent: float
    end_percent: float

    def is_active(self, sigma: float, model_sampling: Any) -> bool:
        start, end = (model_sampling.percent_to_sigma(p) for p in (self.start_percent, self.end_percent))
        return end <= sigma <= start


@dataclass
class _Run:
    """What one sampling run has seen; shared by its threads."""

    asked: list[_Tapped] = field(default_factory=list)
    reached: set[tuple[_Tapped, str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, active: list[_Tapped]) -> None:
        with self._lock:
            self.asked += [tapped for tapped in active if tapped not in self.asked]

    def raise_if_missed(self) -> None:
        for tapped in self.asked:
            missed = sorted(tapped.sites - {name for who, name in self.reached if who == tapped})
            if missed:
                raise NoSuchSiteError(
                    f"{tapped.asked_by} asked for attention layers that the model never reached in this run: "
                    f"{', '.join(missed)}. Another node may have replaced these blocks; leave them out of 'layers', "
                    "or remove that node."
                )


def tap(
    model: ModelPatcher,
    technique: Technique,
    *,
    layers: str,
    kinds: Sequence[str],
    asked_by: str,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> tuple[ModelPatcher, list[Site]]:
    """A clone of ``model`` on which ``technique`` attends at the sites of ``kinds`` that ``layers`` selects.

    Returns the clone and the sites. UnknownModelError and NoSuchSiteError as in :mod:`.sites`; ValueError where
    the percentages are not 0 ≤ start ≤ end ≤ 1.
    """
    if not 0.0 <= start_percent <= end_percent <= 1.0:
        raise ValueError(
            f"{asked_by}: start_percent is {start_percent} and end_percent {end_percent}, "
            "expected 0 ≤ start_percent ≤ end_percent ≤ 1."
        )
    sites = select_sites(list_sites(model.get_model_object("diffusion_model")), layers, kinds)
    names = frozenset(site.name for site in sites)
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    tapped = _Tapped(technique, asked_by, names, start_percent, end_percent)
    options[_TECHNIQUES] = tuple(
        sorted((*options.get(_TECHNIQUES, ()), tapped), key=lambda each: each.technique.stage)
    )
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _around_run),
        (WrappersMP.APPLY_MODEL, _around_model_call),
    ):
        clone.remove_wrappers_with_key(kind, _WRAPPER)
        clone.add_wrapper_with_key(kind, _WRAPPER, wrapper)
    return clone, sites


def _around_run(executor, *args, **kwargs):
    """OUTER_SAMPLE: a run that ends well must have reached every site that was asked for."""
    options = executor.class_obj.model_options["transformer_options"]
    options[_RUN] = run = _Run()
    try:
        result = executor(*args, **kwargs)
    finally:
        del options[_RUN]
    run.raise_if_missed()
    return result


def _around_model_call(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """APPLY_MODEL: opens the tap for the length of one model call."""
    base_model, options = executor.class_obj, transformer_options or {}
    sigma = float(t.flatten()[0])
    active = [
        each for each in options.get(_TECHNIQUES, ()) if each.is_active(sigma, base_model.model_sampling)
    ]
    if not active:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    wanted = frozenset[str]().union(*(each.sites for each in active))
    sites = [site for site in list_sites(base_model.diffusion_model) if site.name in wanted]
    opened = _OpenTap(active, sites, options, rows=x.shape[0], sigma=sigma)
    with ExitStack() as stack:
        for site in sites:
            hook = site.module.register_forward_pre_hook(_marking(site), with_kwargs=True)
            stack.callback(hook.remove)
        return executor(x, t, c_concat, c_crossattn, control, opened.options, **kwargs)


def _marking(site: Site):
    def write_site(_module, args, kwargs):
        return args, {**kwargs, "transformer_options": {**kwargs.get("transformer_options", {}), _SITE: site}}

    return write_site


class _OpenTap:
    """The tap during one model call. ``options`` are the transformer_options that lead the attention here."""

    def __init__(
        self, active: list[_Tapped], sites: list[Site], options: dict, *, rows: int, sigma: float
    ) -> None:
        self._active = active
        self._sigma = sigma
        self._branches = tuple(
            zip_longest(options.get("cond_or_uncond", (0,)), options.get("uuids", ()), fillvalue=None)
        )
        self._frame_indices = _frame_indices(rows // len(self._branches), options)
        self._run: _Run | None = options.get(_RUN)
        if self._run is not None:
            self._run.ask(active)
        self._override = options.get("optimized_attention_override")
        self._site_at = {site.patch_key: site for site in sites}
        self.options = {
            **options,
            "optimized_attention_override": self._attend,
            "patches_replace": {
                attention: {place: self._around(each, attention) for place, each in replacements.items()}
                for attention, replacements in options.get("patches_replace", {}).items()
            },
        }

    def _attend(self, func, q, k, v, heads, *args, **kwargs):
        """ComfyUI's attention override; an override of another pack runs inside."""

        def proceed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self._override is not None:
                return self._override(func, q, k, v, heads, *args, **kwargs)
            return func(q, k, v, heads, *args, **kwargs)

        site = kwargs.get("transformer_options", {}).get(_SITE)
        if site is None:
            return proceed(q, k, v)
        scores = {"mask": args[0] if args else kwargs.get("mask"), "scale": kwargs.get("scale")}
        return self._through_techniques(site, q, k, v, heads, proceed, **scores)

    def _around(self, replacement: Callable, attention: str) -> Callable:
        """Another pack's replacement of an attention layer, with the techniques around it."""

        def replaced(q, k, v, extra_options, *args, **kwargs):
            def proceed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return replacement(q, k, v, extra_options, *args, **kwargs)

            site = self._site_at.get((attention, *extra_options["block"], extra_options["block_index"]))
            if site is None:
                return proceed(q, k, v)
            return self._through_techniques(site, q, k, v, extra_options["n_heads"], proceed)

        return replaced if attention in ("attn1", "attn2") else replacement

    def _through_techniques(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, proceed: Proceed, **scores: Any
    ) -> Tensor:
        for tapped in reversed(self._active):
            if site.name in tapped.sites:
                if self._run is not None:
                    self._run.reached.add((tapped, site.name))
                proceed = partial(self._call_technique, tapped.technique, site, heads, scores, proceed)
        return proceed(q, k, v)

    def _call_technique(self, technique: Technique, site, heads, scores, proceed: Proceed, q, k, v) -> Tensor:
        call = AttentionCall(q, k, v, heads, site, self._branches, self._frame_indices, self._sigma, **scores)
        return technique.attend(call, proceed)


def _frame_indices(frames: int, options: dict) -> tuple[int, ...]:
    """The clip's frame of every row of a branch: a context window holds some frames of the clip only."""
    window = getattr(options.get("context_window"), "index_list", ())
    return tuple(window) if len(window) == frames else tuple(range(frames))
