"""The one tap into a model's attention.

A technique asks for some sites of a model between two percentages of sampling, and is then called at each of them
in place of the attention, with q, k and v after projection, knowing which site it is, which rows belong to which
branch and where the frames are. It returns the layer's output; ``proceed(q, k, v)`` runs whatever comes next: the
next technique, then what other packs put there (``attn1_replace``, ``optimized_attention_override``), then ComfyUI's
attention. So techniques stack, and other packs' patches go on working whichever node came first.

How it reaches the attention: a wrapper around every model call copies ``transformer_options``, gives the attention
modules forward pre-hooks that write their site into *their* copy, and sets an attention override that reads it.
Nothing outlives the call, nothing is written on the user's model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .branches import Branch, branches_of, with_branches
from .chunks import Chunk, in_chunks, require_frame_by_frame
from .frames import Clip
from .prefix import shared
from .run import Run, Tapped, undone_after
from .sites import INSERTED, Kind, Site, patch_of, select_sites, sites_of
from .technique import AttentionCall, FurtherKeysError, Technique, rows_of_mask
from .uncompiled import uncompiled_if_unguarded

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# Keys in transformer_options. Some models splat these as keyword arguments: hence identifiers.
_TECHNIQUES, _RUN, _OPEN = "coherence_techniques", "coherence_run", "coherence_open_tap"
_SITES, _REPLACED = "coherence_sites", "coherence_replaced_"
_WRAPPER = "coherence.tap"

Attention = Callable[[Tensor, Tensor, Tensor, tuple[Branch, ...]], Tensor]
"""What runs behind the techniques, given the branches whose rows q, k and v hold."""


def tap(
    model: ModelPatcher,
    technique: Technique,
    *,
    layers: str,
    kinds: Sequence[Kind],
    asked_by: str,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> tuple[ModelPatcher, list[Site]]:
    """A clone of ``model`` on which ``technique`` attends at the sites of ``kinds`` that ``layers`` selects.

    Returns the clone and the sites; AnimateDiff's too where ``model`` has its motion model already.
    UnknownModelError and NoSuchSiteError as in :mod:`.sites`; ValueError where
    the percentages are not 0 ≤ start ≤ end ≤ 1.
    """
    if not 0.0 <= start_percent <= end_percent <= 1.0:
        raise ValueError(
            f"{asked_by}: start_percent is {start_percent} and end_percent {end_percent}, "
            "expected 0 ≤ start_percent ≤ end_percent ≤ 1."
        )
    sites = select_sites(sites_of(model), layers, kinds)
    names = frozenset(site.name for site in sites)
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    tapped = Tapped(technique, asked_by, names, start_percent, end_percent)
    options[_TECHNIQUES] = tuple(sorted((*options.get(_TECHNIQUES, ()), tapped), key=lambda each: each.technique.stage))
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _around_run),
        (WrappersMP.PREPARE_SAMPLING, _around_loading),
        (WrappersMP.APPLY_MODEL, _around_model_call),
    ):
        clone.remove_wrappers_with_key(kind, _WRAPPER)
        clone.add_wrapper_with_key(kind, _WRAPPER, wrapper)
    return clone, sites


def _around_run(executor, *args, **kwargs):
    """OUTER_SAMPLE: a run that ends well must have reached every site that was asked for."""
    model_options = executor.class_obj.model_options
    options = model_options["transformer_options"]
    options[_RUN] = run = Run()
    try:
        with uncompiled_if_unguarded(model_options):
            result = executor(*args, **kwargs)
    finally:
        del options[_RUN]
    run.raise_if_missed()
    return result


def _around_loading(executor, model, noise_shape, conds, *args, **kwargs):
    """PREPARE_SAMPLING: of a clip that runs in chunks, the model needs memory for one; a ControlNet runs at once."""
    length = _frames_per_batch(kwargs["model_options"]["transformer_options"])
    if length and not any("control" in cond for each in conds.values() for cond in each):
        noise_shape = [min(noise_shape[0], length), *noise_shape[1:]]
    return executor(model, noise_shape, conds, *args, **kwargs)


def _around_model_call(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """APPLY_MODEL: opens the tap for the length of one model call, or of every chunk of its frames."""
    options, inputs = transformer_options or {}, (x, t, c_concat, c_crossattn, control)
    branches, length = len(branches_of(options)), _frames_per_batch(options)
    if not 0 < length < len(x) // branches:
        return _tapped_call(executor, inputs, kwargs, options)

    def call(chunk: Chunk, all_inputs: Any) -> Tensor:
        throw_exception_if_processing_interrupted()
        inputs, kwargs = all_inputs
        return _tapped_call(executor, inputs, kwargs, chunk.told(options), chunk)

    indices = Clip.of(x, branches, (1, 1, 1), options).frame_indices
    return in_chunks(call, (inputs, kwargs), len(x), indices, length)


def _frames_per_batch(options: dict) -> int:
    """The least that is asked for, whether active or not: memory does not grow at other steps. 0 for all frames."""
    return min((each.frames_per_batch for each in options.get(_TECHNIQUES, ()) if each.frames_per_batch), default=0)


def _tapped_call(executor, inputs: tuple, kwargs: dict, options: dict, chunk: Chunk | None = None) -> Tensor:
    base_model, (x, t, *_) = executor.class_obj, inputs
    sigma = float(t.flatten()[0])
    active = [each for each in options.get(_TECHNIQUES, ()) if each.is_active(sigma, base_model.model_sampling)]
    if chunk is None and not active:
        return executor(*inputs, options, **kwargs)
    opened = _OpenTap(active, base_model.diffusion_model, options, x, sigma, chunk)
    with undone_after(options) as stack:
        opened.on_modules(stack)
        return executor(*inputs, opened.leading_here(options), **kwargs)


class _OpenTap:
    """The tap during one model call."""

    def __init__(
        self,
        active: list[Tapped],
        diffusion_model: nn.Module,
        options: dict,
        latents: Tensor,
        sigma: float,
        chunk: Chunk | None,
    ) -> None:
        self._active = active
        self._sigma = sigma
        self._run: Run = options.get(_RUN) or Run()
        self._run.ask(active)
        self._anatomy = self._run.anatomy_of(diffusion_model, options.get(INSERTED, ()))
        self._sites = self._anatomy.sites
        self._rows, self._branches = len(latents), branches_of(options)
        self._chunk = chunk
        if chunk is None:
            self._clip = Clip.of(latents, len(self._branches), patch_of(diffusion_model), options)
        else:
            require_frame_by_frame(self._sites.values(), [each.asked_by for each in active if not each.runs_in_chunks])
            self._clip = Clip(chunk.frame_indices, 1)
        self._override = options.get("optimized_attention_override")

    def leading_here(self, options: dict) -> dict:
        """Transformer options that lead the attention here."""
        return {
            **with_branches(options, self._branches),
            _OPEN: self,
            "optimized_attention_override": _override(),
            "patches_replace": {
                name: {place: self._around(name, each) for place, each in replacements.items()}
                if name in ("attn1", "attn2")
                else replacements
                for name, replacements in options.get("patches_replace", {}).items()
            },
        }

    def on_modules(self, stack: ExitStack) -> None:
        """Lets every attention tell its site until ``stack`` is closed: also those that nobody asked for, as code that
        torch.compile made once keeps the hooks it was made with."""
        notes: dict[nn.Module, dict[str, Any]] = {}
        for site in self._sites.values():
            if site.attends_by:
                stack.enter_context(_replaced(site.module, site.attends_by, partial(self._instead_of, site)))
            else:
                notes.setdefault(site.module, {}).setdefault(_SITES, []).append(site.name)
            if site.replaced_in:
                block, name = site.replaced_in
                notes.setdefault(block, {})[_REPLACED + name] = site.name
        for module, note in notes.items():
            hook = module.register_forward_pre_hook(_writing(note), with_kwargs=True)
            stack.callback(hook.remove)
        parting = frozenset(name for tapped in self._active if tapped.parts_copies for name in tapped.sites)
        if parting:
            stack.enter_context(shared(self._anatomy.before(parting), self._branches, self._rows))

    def attend(self, pending: list[str], func, q, k, v, heads, *args, **kwargs) -> Tensor:
        """Instead of ComfyUI's attention ``func``; an override of another pack runs inside.

        ``pending``: the names of the module's sites that are still to come.
        """
        options, rows = kwargs["transformer_options"], len(q)
        here = branches_of(options)
        mask = args[0] if args else kwargs.get("mask")
        behind = func if self._override is None else partial(self._override, func)

        def attention(q: Tensor, k: Tensor, v: Tensor, branches: tuple[Branch, ...]) -> Tensor:
            if branches == here:
                return behind(q, k, v, heads, *args, **kwargs)
            theirs = rows_of_mask(mask, rows, len(here), [here.index(branch) for branch in branches])
            named = {**kwargs, "transformer_options": with_branches(options, branches)}
            if args:
                return behind(q, k, v, heads, theirs, *args[1:], **named)
            return behind(q, k, v, heads, **{**named, "mask": theirs})

        if not pending:
            return attention(q, k, v, here)
        site = self._sites[pending.pop(0) if len(pending) > 1 else pending[0]]
        facts = {
            "mask": mask,
            "scale": kwargs.get("scale"),
            "heads_joined": q.ndim == 3 or not kwargs.get("skip_output_reshape", False),
            "grid": _grid(options, q.shape[-2]),
        }
        return self._through_techniques(site, q, k, v, heads, attention, here, facts)

    def _instead_of(self, site: Site, func: Callable, q, k, v, heads, mask=None) -> Tensor:
        """Instead of an attention of the module's own."""
        rows = len(q)

        def attention(q: Tensor, k: Tensor, v: Tensor, branches: tuple[Branch, ...]) -> Tensor:
            kept = [self._branches.index(branch) for branch in branches]
            return func(q, k, v, heads, rows_of_mask(mask, rows, len(self._branches), kept))

        return self._through_techniques(site, q, k, v, heads, attention, self._branches, {"mask": mask})

    def _around(self, name: str, replacement: Callable) -> Callable:
        """Another pack's replacement of a block's attention, with the techniques around it."""

        def replaced(q, k, v, extra_options, *args, **kwargs):
            here = branches_of(extra_options)
            site = extra_options.get(_REPLACED + name)

            def attention(q: Tensor, k: Tensor, v: Tensor, branches: tuple[Branch, ...]) -> Tensor:
                if site is not None and name == "attn1" and q.shape[-2] != k.shape[-2]:
                    raise FurtherKeysError(
                        f"Another node replaces the attention of {site} and needs as many keys as queries there, as "
                        "PerturbedAttentionGuidance and SelfAttentionGuidance do, but there are "
                        f"{q.shape[-2]} queries and {k.shape[-2]} keys. Remove it, leave the layer out of 'layers', or "
                        "set CrossFrameAttention's keys to 'first' or 'previous', STAMInflate's frame_attention to "
                        "'first' or 'self'."
                    )
                options = extra_options if branches == here else with_branches(extra_options, branches)
                return replacement(q, k, v, options, *args, **kwargs)

            if site is None:
                return attention(q, k, v, here)
            heads = extra_options["n_heads"]
            facts = {"grid": _grid(extra_options, q.shape[-2])}
            return self._through_techniques(self._sites[site], q, k, v, heads, attention, here, facts)

        return replaced

    def _through_techniques(
        self,
        site: Site,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        attention: Attention,
        branches: tuple[Branch, ...],
        facts: dict[str, Any],
    ) -> Tensor:
        facts = {**facts, **self._clip.inside(site, q.shape[-2])}
        for tapped in reversed(self._active):
            if site.name in tapped.sites:
                self._run.reached.add((tapped, site.name))
                attention = partial(self._call_technique, tapped, site, heads, facts, attention)
        return attention(q, k, v, branches)

    def _call_technique(
        self, tapped: Tapped, site, heads, facts, following: Attention, q, k, v, branches: tuple[Branch, ...]
    ) -> Tensor:
        def proceed(q: Tensor, k: Tensor, v: Tensor, branches: tuple[Branch, ...] = branches) -> Tensor:
            return following(q, k, v, branches)

        frames = self._clip.frame_indices
        memory = None if self._chunk is None else self._chunk.memory_of(tapped, site.name, branches)
        call = AttentionCall(q, k, v, heads, site, branches, frames, self._sigma, memory=memory, **facts)
        return tapped.technique.attend(call, proceed)


def _grid(options: dict, tokens: int) -> tuple[int, int] | None:
    """Height and width of the pictures that a UNet's layer turned into ``tokens``."""
    *_, height, width = options.get("activations_shape", (0, 0))
    return (height, width) if height * width == tokens else None


def _attend(func, q, k, v, heads, *args, **kwargs) -> Tensor:
    """ComfyUI's ``optimized_attention_override``: one function for all calls, else torch.compile starts anew."""
    options = kwargs["transformer_options"]
    return options[_OPEN].attend(options.get(_SITES, []), func, q, k, v, heads, *args, **kwargs)


def _override() -> Callable:
    """Compiled code must leave itself to attend: the sites and the techniques are ordinary Python.

    Whoever compiles has imported torch._dynamo; else that import is seconds saved.
    """
    return _uncompiled_attend() if "torch._dynamo" in sys.modules else _attend


@lru_cache(maxsize=1)
def _uncompiled_attend() -> Callable:
    return torch.compiler.disable(_attend)


def _writing(note: dict[str, Any]) -> Callable:
    """A forward pre-hook that adds ``note`` to the module's copy of transformer_options; its lists fresh every time.

    A note is plain text: torch.compile would look into anything more.
    """

    def write(_module, args, kwargs=None):
        if kwargs is None:  # torch drops them from a hook that another thread just removed
            return None
        fresh = {key: [*value] if isinstance(value, list) else value for key, value in note.items()}
        return args, {**kwargs, "transformer_options": {**kwargs.get("transformer_options", {}), **fresh}}

    return write


@contextmanager
def _replaced(module: nn.Module, name: str, instead: Callable) -> Iterator[None]:
    """``module.name`` calls ``instead(original, …)`` meanwhile."""
    original = getattr(module, name)
    setattr(module, name, partial(instead, original))
    try:
        yield
    finally:
        setattr(module, name, original)
