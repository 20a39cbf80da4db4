"""The shared prefix: branches that are still equal are computed once.

Copies of a branch (:mod:`..techniques.branches`) differ from it only from the first layer that treats them
differently. Every module that ends before that layer runs only on the originals' rows, and the copies get its results:
hooks remove the copies' rows from the input and restore them in the output. This needs no knowledge of a module's code.
If no copy is in the same call as its original, as when memory splits a call, nothing is skipped.

Nothing is skipped either if other packs' patches act at layers: they may treat a branch differently depending on the
others in the call, and copies would get what was meant for their original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..techniques.branches import Branch, branches_of, originals, rows_of, with_branches
from .hooks import heard

MODULE_HANDLERS = "forward_timestep_embed_patch"
"""Patches that are no function of features: how a UNet calls modules that are not ComfyUI's."""
AT_TIME_0 = "timestep_zero_index"
"""What blocks are told where references are at time 0: the rows of the times are there twice, for these as well."""
_OURS = __name__.rsplit(".", 2)[0] + "."


def layers_before(layers: Iterable[nn.Module], parting: set[nn.Module]) -> list[nn.Module]:
    """Of ``layers``, in the order they run, those that end before the first of the modules ``parting`` runs.

    The layer that holds it counts by its own blocks. Only ComfyUI's modules are taken: of others, such as motion
    modules, it is not known whether they treat every row for itself.
    """
    before: list[nn.Module] = []
    for layer in layers:
        if parting.isdisjoint(layer.modules()):
            before += [layer] if type(layer).__module__.startswith("comfy.") else []
        else:
            blocks = getattr(layer, "transformer_blocks", ())
            return before + (layers_before(blocks, parting) if layer not in parting else [])
    return before


@contextmanager
def shared(
    layers: Sequence[nn.Module], branches: Sequence[Branch], rows: int, options: dict[str, Any]
) -> Iterator[None]:
    """``layers`` run on the rows of the originals among ``branches``; a call's tensors have ``rows`` rows, and
    ``options`` are its transformer options."""
    kept, place = originals(branches)
    with ExitStack() as stack:
        if len(kept) < len(branches):
            before, after = (heard(hook, options) for hook in _hooks(len(branches), kept, place, rows))
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(after).remove)
        yield


def is_patched(options: dict[str, Any]) -> bool:
    """Whether other packs act at ComfyUI's layers in a model call with these transformer options."""
    patches = [*options.get("patches", {}).items(), *options.get("patches_replace", {}).items()]
    theirs = (each for name, several in patches if name != MODULE_HANDLERS for each in several_of(several))
    return any(not getattr(each, "__module__", "").startswith(_OURS) for each in theirs)


def several_of(patches: Any) -> list[Any]:
    """Patches of one name: a list, or what replaces something by place."""
    return list(patches.values() if isinstance(patches, dict) else patches)


def _hooks(branches: int, kept: list[int], place: list[int], rows: int) -> tuple[Callable, Callable]:
    rows_kept = rows // branches * len(kept)

    def narrowed(x: Any, twice: bool) -> Any:
        if isinstance(x, Tensor) and x.ndim and len(x) == rows:
            return rows_of(x, branches, kept)
        if twice and isinstance(x, Tensor) and x.ndim and len(x) == 2 * rows:
            return torch.cat([rows_of(half, branches, kept) for half in x.chunk(2)])
        if isinstance(x, dict) and len(x.get("cond_or_uncond", ())) == branches:
            present = branches_of(x)
            return with_branches(x, [present[position] for position in kept])
        if type(x).__module__.startswith("comfy.") and not isinstance(x, nn.Module):
            return narrowed_object(x, twice)
        return type(x)(narrowed(each, twice) for each in x) if type(x) in (tuple, list) else x

    def narrowed_object(x: Any, twice: bool) -> Any:
        """ComfyUI's own, such as Flux.2's modulation and LTX-2's time steps."""
        held = {name: getattr(x, name) for name in getattr(type(x), "__slots__", ())} | getattr(x, "__dict__", {})
        narrow = copy(x)
        for name, value in held.items():
            counts_rows = name == "batch_size" and value == rows
            object.__setattr__(narrow, name, rows_kept if counts_rows else narrowed(value, twice))
        return narrow

    def widened(x: Any) -> Any:
        if isinstance(x, Tensor) and x.ndim and len(x) == rows_kept:
            return rows_of(x, len(kept), place)
        return type(x)(map(widened, x)) if type(x) in (tuple, list) else x

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        twice = kwargs.get(AT_TIME_0) is not None
        return narrowed(args, twice), {name: narrowed(value, twice) for name, value in kwargs.items()}

    def after(_module: nn.Module, _args: tuple, out: Any) -> Any:
        return widened(out)

    return before, after
