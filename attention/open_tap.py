"""The tap during one model call: how it reaches every attention, and the way through the techniques there.

A copy of ``transformer_options`` leads the attention here: forward pre-hooks write on the attention modules' own copy
which site they are, and an attention override reads it. At a site q, k and v walk through the techniques to the host's
attention and back: each technique is one frame of the stack, and so is what leads to it. Hooks are gone and modules as
they were when the call is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..techniques.branches import Branch, branches_of, originals, rows_of, with_branches
from ..techniques.technique import AttentionCall, FeaturesCall, MergedError
from .carrying import Carrying
from .chunks import Chunk, require_frame_by_frame, require_may_run_ahead
from .frames import Clip
from .hooks import heard, of_this_call
from .host_attention import HostAttention, outside_graphs
from .keys import INPUT, INSERTED, OPEN_TAP, OVERRIDE, PAIRS, REPLACED, RUN, SITES, THEIRS
from .prefix import is_patched, shared
from .rows import RowsError
from .run import Run, Tapped
from .sites import NoSuchSiteError, Site, family_of
from .uncompiled import uncompiled


class OpenTap:
    """``active``: the techniques that act in this call, in their order. ``shape``: that of the latents, of several
    modalities the clip's. ``text_tokens``: of the prompt. ``chunk``: of the clip, if it comes in some."""

    def __init__(
        self,
        active: list[Tapped],
        diffusion_model: nn.Module,
        options: dict,
        shape: Sequence[int],
        text_tokens: int,
        sigma: float,
        chunk: Chunk | None,
    ) -> None:
        self._active = active
        self._sigma = sigma
        self._run: Run = options.get(RUN) or Run()
        self._run.ask(active)
        self._anatomy = self._run.anatomy_of(diffusion_model, options.get(INSERTED, ()))
        self._sites = self._anatomy.sites
        self._rows, self._branches = shape[0], branches_of(options)
        self._chunk = chunk
        family = family_of(diffusion_model)
        self._clip = Clip.of(shape, len(self._branches), family, diffusion_model, options, text_tokens)
        if chunk is not None:
            needing = [each.asked_by for each in active if not each.technique.supports_chunks]
            require_frame_by_frame(self._sites.values(), needing)
            if chunk.ahead_for:
                waiting = [e.asked_by for e in active if not e.technique.by_frame and e.asked_by != chunk.ahead_for]
                require_may_run_ahead(waiting, chunk.ahead_for)
            self._clip = replace(self._clip, frame_indices=chunk.frame_indices)
        self._override = options.get(OVERRIDE)
        self._shares = not is_patched(options)
        self.options = self._leading_here(options)
        """Transformer options that lead the attention here."""
        self._options_near, self._is_ours = self.options, of_this_call(options)
        self._entered: dict[str, str] = {}
        self._told: dict[str, Any] = {
            "frame_indices": self._clip.frame_indices,
            "clip_numbers": self._run.numbers_of(self._clip.frame_indices),
            "clip_length": self._run.frames or None,
            "whole_frames": self._run.size in (None, tuple(shape[-2:])),
            "sigma": sigma,
            "pairs": options.get(PAIRS),
            "runs_ahead": chunk is not None and bool(chunk.ahead_for),
        }
        """What every technique is told, at every site."""

    def _leading_here(self, options: dict) -> dict:
        patches = options.get("patches", {})
        replaces = bool(options.get("patches_replace", {}).get("attn1"))
        if replaces and any(each.technique.needs_input for each in self._active):
            patches = {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), _show_input]}
        return {
            **with_branches(options, self._branches),
            **({"patches": patches} if patches else {}),
            OPEN_TAP: self,
            OVERRIDE: _override(),
            "patches_replace": {
                name: {place: partial(self.attend_replaced, name, each) for place, each in replacements.items()}
                if name in ("attn1", "attn2")
                else replacements
                for name, replacements in options.get("patches_replace", {}).items()
            },
        }

    def on_modules(self, stack: ExitStack) -> None:
        """Lets every attention tell its site until ``stack`` is closed: also those that nobody asked for, as code that
        torch.compile made once keeps the hooks it was made with."""
        notes: dict[nn.Module, dict[str, Any]] = {}
        showing = {site.module for site in self._sites.values() if site.shows_input}
        for site in self._sites.values():
            if site.attends_by:
                instead = partial(self.attend_own, site)
                stack.enter_context(_replaced(site.module, site.attends_by, instead, self._is_ours))
            else:
                notes.setdefault(site.module, {}).setdefault(SITES, []).append(site.name)
            if site.replaced_in:
                block, name = site.replaced_in
                notes.setdefault(block, {})[REPLACED + name] = site.name
        for module, note in notes.items():
            write = _writing(note, self.near, module in showing)
            hook = module.register_forward_pre_hook(write, with_kwargs=True)
            stack.callback(hook.remove)
        wanted = {name for tapped in self._active for name in tapped.sites} & self._anatomy.features.keys()
        if wanted:
            stack.enter_context(uncompiled())
        for name in wanted:
            block = self._anatomy.features[name]
            transformed = heard(partial(self._transformed, block), self.options)
            stack.callback(block.module.register_forward_hook(transformed).remove)
        parting = frozenset[str]().union(*(e.technique.parts_at(e.sites, self._sigma) for e in self._active))
        if parting and self._shares:
            stack.enter_context(shared(self._anatomy.before(parting), self._branches, self._rows, self.options))

    def _transformed(self, site: Site, _module: nn.Module, _args: tuple, features: Tensor) -> Tensor:
        """Forward hook: what the techniques make of a block's features."""
        branches = self._branches
        if len(features) != self._rows:  # copies that are still equal are computed once
            branches = tuple(branches[position] for position in originals(branches)[0])
        for tapped in self._reaching(site):
            memory = None if self._chunk is None else self._chunk.memory_of(tapped, site.name, branches)
            call = FeaturesCall(features, site, branches, memory=memory, **self._told)
            with outside_graphs():
                features = tapped.technique.transform(call)
        return features

    def _reaching(self, site: Site) -> Iterator[Tapped]:
        """The techniques at ``site``, which they have reached, the innermost first."""
        for tapped in reversed(self._active):
            if site.name in tapped.sites:
                self._run.reached.add((tapped, site.name))
                yield tapped

    def near(self, module: nn.Module, names: Iterable[str], options: dict | None) -> dict:
        """The transformer options of a ``module`` that begins to run, and holds the sites ``names``.

        A block whose code another node replaced may give its attention none, or others: then those of the last block.
        """
        if not self._is_ours():
            return options or {}
        if options is None or OPEN_TAP not in options:
            options = {**self._options_near, **(options or {}), OVERRIDE: _override()}
        elif options.get(OVERRIDE) not in (_attend, _override()):  # another node's, put there since the call began
            options = {**options, OVERRIDE: _override(), THEIRS: options.get(OVERRIDE)}
        self._options_near = options
        if options.get("stg_skip_self_attn"):  # LTXV's guidance by skipped layers: they run, and do not attend
            return options
        code = getattr(module.forward, "__module__", None) or type(module).__module__
        for name in names:
            if name not in self._entered or not code.startswith("comfy."):
                self._entered[name] = code
        return options

    def require_reached(self) -> None:
        """NoSuchSiteError where the code around a site ran, but not ComfyUI's attention."""
        for tapped in self._active:
            names = sorted(tapped.sites & self._entered.keys())
            missed = [name for name in names if (tapped, name) not in self._run.reached]
            if missed:
                code = sorted({place for name in missed if not (place := self._entered[name]).startswith("comfy.")})
                raise NoSuchSiteError(
                    f"{tapped.asked_by} asked for attention layers whose attention it cannot see, although they ran: "
                    f"{', '.join(missed)}. Another node has replaced the code of these blocks "
                    f"({', '.join(code) or 'as reference ControlNets do'}), and attends in its own way. Leave them out "
                    "of 'layers', or remove that node."
                )

    def attend(self, func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        """Instead of ComfyUI's attention ``func``; an override of another pack runs inside."""
        options = kwargs["transformer_options"]
        pending = options.get(SITES)
        if v.ndim > q.ndim:  # SD3 keeps the heads of its values apart
            v = v.flatten(-2)
        theirs = options.get(THEIRS, self._override)
        if theirs is not None:
            func = partial(theirs, func)
        elif pending:
            func = self._anatomy.preferred(pending[0]) or func
        mask_at = 1 if args else "mask"
        here = branches_of(options)
        host = HostAttention(func, (heads, *args), kwargs, len(q), here, mask_at, options_at="transformer_options")
        if not pending:
            return host(q, k, v, branches=here)
        site = self._sites[pending.pop(0) if len(pending) > 1 else pending[0]]
        facts = {
            "mask": args[0] if args else kwargs.get("mask"),
            "scale": kwargs.get("scale"),
            "heads_joined": q.ndim == 3 or not kwargs.get("skip_output_reshape", False),
            "grid": _grid(options, k.shape[-2]) or _grid(options, q.shape[-2]),
            "input": options.get(INPUT),
        }
        return self._walk(site, facts, host, (q, k, v), heads, here)

    def attend_own(self, site: Site, func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None) -> Tensor:
        """Instead of an attention of the module's own."""
        host = HostAttention(func, (heads, mask), {}, len(q), self._branches, mask_at=1)
        return self._walk(site, {"mask": mask}, host, (q, k, v), heads, self._branches)

    def attend_replaced(
        self, name: str, replacement: Callable, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, *args, **kwargs
    ) -> Tensor:
        """Another pack's ``replacement`` of a block's attention ``name``, with the techniques around it."""
        here, site = branches_of(extra_options), extra_options.get(REPLACED + name)
        arguments = (replacement, (extra_options, *args), kwargs, len(q), here)
        own_keys = site if name == "attn1" else None
        host = HostAttention(*arguments, options_at=0, own_keys_at=own_keys, replaced_at=site)
        if site is None:
            return host(q, k, v, branches=here)
        shown = extra_options.get(INPUT) if name == "attn1" else None
        facts = {"grid": _grid(extra_options, q.shape[-2]), "input": shown}
        return self._walk(self._sites[site], facts, host, (q, k, v), extra_options["n_heads"], here)

    def _walk(
        self,
        site: Site,
        facts: dict[str, Any],
        host: HostAttention,
        qkv: tuple[Tensor, Tensor, Tensor],
        heads: int,
        branches: tuple[Branch, ...],
    ) -> Tensor:
        """From the first technique at ``site`` to the ``host``, and back."""
        there = [*self._reaching(site)]
        if not there:
            return host(*qkv, branches=branches)
        self._require_whole(site, len(qkv[0]), len(branches))
        queries, keys, _ = (x.shape[-2] for x in qkv)
        told = {"site": site, "heads": heads, **self._told, **facts, **self._clip.inside(site, queries)}
        told["further_keys"] = keys - queries
        way: Callable[..., Tensor] = host
        for tapped in there:
            way = _Step(tapped, told, self._chunk, self._run.carrying.get(tapped), way, branches)
        with outside_graphs():
            return way(*qkv, branches=branches)

    def _require_whole(self, site: Site, rows: int, branches: int) -> None:
        """Where frames are rows, all of them are there; pictures cut into tiles (HyperTile) have a multiple of them."""
        frames = len(self._clip.frame_indices)
        if site.frames_in == "rows" and (rows < branches * frames or rows % (branches * frames)):
            raise RowsError(
                f"Attention layer {site.name} is called with {rows} rows, expected {branches * frames}: {branches} "
                f"conditionings of {frames} frames. Another node attends for some of the rows alone, as reference "
                "ControlNets do for the negative. Set their style_fidelity to 0, or remove that node."
            )


@dataclass(frozen=True, eq=False)
class _Step:
    """A technique at one site, and what comes behind it. ``told``: what it is told beside q, k, v and branches, of
    ``all_branches`` at the site."""

    tapped: Tapped
    told: dict[str, Any]
    chunk: Chunk | None
    carrying: Carrying | None
    following: Callable[..., Tensor]
    all_branches: tuple[Branch, ...]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, branches: tuple[Branch, ...], merged_by: str = "") -> Tensor:
        if merged_by:
            raise MergedError(
                f"{merged_by} merges frames at attention layer {self.told['site'].name}, but {self.tapped.asked_by}, "
                "which comes after it there, needs them whole. Give the two different layers, or remove one of them."
            )
        chunk, carrying, layer = self.chunk, self.carrying, self.told["site"].name
        memory = None if chunk is None else chunk.memory_of(self.tapped, layer, branches)
        if carrying is not None:
            memory = {} if memory is None else memory
            if chunk is None or chunk.is_first:
                memory |= carrying.begin(layer, branches, self.told["sigma"], k)
        told = self.told
        if told.get("input") is not None and branches != self.all_branches:
            kept = [self.all_branches.index(branch) for branch in branches]
            told = {**told, "input": rows_of(told["input"], len(self.all_branches), kept)}

        def proceed(
            q: Tensor, k: Tensor, v: Tensor, *, branches: tuple[Branch, ...] = branches, merged: bool = False
        ) -> Tensor:
            return self.following(q, k, v, branches=branches, merged_by=self.tapped.asked_by if merged else "")

        call = AttentionCall(q, k, v, branches=branches, memory=memory, **told)
        out = self.tapped.technique.attend(call, proceed)
        if carrying is not None and memory is not None and (chunk is None or chunk.is_last):
            carrying.end(layer, branches, memory, {"k": k.dtype, "v": v.dtype})
        return out


def _grid(options: dict, tokens: int) -> tuple[int, int] | None:
    """Height and width of the pictures that a UNet's layer turned into ``tokens``."""
    *_, height, width = options.get("activations_shape", (0, 0))
    return (height, width) if height * width == tokens else None


def _attend(func, q, k, v, heads, *args, **kwargs) -> Tensor:
    """ComfyUI's ``optimized_attention_override``: one function for all calls, else torch.compile starts anew."""
    return kwargs["transformer_options"][OPEN_TAP].attend(func, q, k, v, heads, *args, **kwargs)


def _override() -> Callable:
    """Compiled code must leave itself to attend: the sites and the techniques are ordinary Python.

    Whoever compiles has imported torch._dynamo; else that import is seconds saved.
    """
    return _uncompiled_attend() if "torch._dynamo" in sys.modules else _attend


@lru_cache(maxsize=1)
def _uncompiled_attend() -> Callable:
    return torch.compiler.disable(_attend)


def _show_input(n: Tensor, context: Tensor, value: Tensor, extra_options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """ComfyUI's ``attn1_patch``, the last: where another pack replaces the attention, no module is given its input."""
    extra_options[INPUT] = n
    return n, context, value


def _writing(
    note: dict[str, Any], near: Callable[[nn.Module, Iterable[str], dict | None], dict], shows_input: bool
) -> Callable:
    """A forward pre-hook that adds ``note`` to the module's copy of transformer_options; its lists fresh every time.

    A note is plain text: torch.compile would look into anything more. With ``shows_input`` the module's first argument
    goes along.
    """

    names = [name for value in note.values() for name in ([value] if isinstance(value, str) else value)]

    def write(module, args, kwargs=None):
        if kwargs is None:  # torch drops them from a hook that another thread just removed
            return None
        fresh = {key: [*value] if isinstance(value, list) else value for key, value in note.items()}
        options = kwargs.get("transformer_options")
        if not torch.compiler.is_compiling():
            options = near(module, names, options)
        if shows_input and args:
            fresh[INPUT] = args[0]
        return args, {**kwargs, "transformer_options": {**(options or {}), **fresh}}

    return write


@contextmanager
def _replaced(module: nn.Module, name: str, instead: Callable, is_ours: Callable[[], bool]) -> Iterator[None]:
    """``module.name`` calls ``instead(original, …)`` meanwhile, in the model call that ``is_ours``. Calls of several
    threads may end in any order."""
    mine = _Instead(instead, getattr(module, name), is_ours)
    setattr(module, name, mine)
    try:
        yield
    finally:
        outer = getattr(module, name)
        if outer is mine:
            setattr(module, name, mine.original)
        while outer is not mine and isinstance(outer, _Instead):
            if outer.original is mine:
                outer.original = mine.original
            outer = outer.original


class _Instead:
    def __init__(self, instead: Callable, original: Callable, is_ours: Callable[[], bool]) -> None:
        self._instead, self.original, self._is_ours = instead, original, is_ours

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_ours():
            return self.original(*args, **kwargs)
        return self._instead(self.original, *args, **kwargs)
