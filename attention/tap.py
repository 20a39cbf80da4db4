"""The one tap into a model's attention.

A technique asks for some sites of a model between two percentages of sampling, and is then called at each of them
in place of the attention, with q, k and v after projection, knowing which site it is, which rows belong to which
branch and where the frames are. It returns the layer's output; ``proceed(q, k, v)`` runs whatever comes next: the
next technique, then what other packs put there (``attn1_replace``, ``optimized_attention_override``), then ComfyUI's
attention. So techniques stack, and other packs' patches go on working whichever node came first.

Here is what a model carries: wrappers around its runs and its calls. :mod:`.open_tap` is the tap during one call.
Nothing outlives the call, nothing is written on the user's model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..techniques.branches import branches_of
from ..techniques.kept import KeptRuns
from ..techniques.technique import Technique
from .carrying import carry_on, keep, require_whole_clip
from .chunk_guard import ChunkGuard, sizes_explained
from .chunks import Chunk, ChunkError, in_chunks
from .frames import frame_indices
from .hooks import undone_after
from .keys import ANY_ORDER, RUN, TECHNIQUES
from .open_tap import OpenTap
from .references import of_a_chunk, require_taken
from .rows import in_groups, rows_told
from .run import Run, Tapped
from .sites import (
    Kind,
    Site,
    family_of,
    network_of,
    optional_sites,
    require_fit,
    require_shown,
    select_features,
    select_sites,
    sites_of,
)
from .steps import Steps, require_percents
from .uncompiled import uncompiled_if_unguarded
from .wrappers import put_wrappers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_WRAPPER = "coherence.tap"


def tap(
    model: ModelPatcher,
    technique: Technique,
    *,
    layers: str,
    kinds: Sequence[Kind],
    asked_by: str,
    by_row: bool = False,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    features: str = "",
) -> tuple[ModelPatcher, list[Site]]:
    """A clone of ``model`` on which ``technique`` attends at the sites of ``kinds`` that ``layers`` selects; with
    ``by_row`` only at those that have a frame to a row. ``features`` selects the blocks whose features it transforms.

    Returns the clone and the sites; AnimateDiff's too where ``model`` has its motion model already.
    UnknownModelError and NoSuchSiteError as in :mod:`.sites`; ValueError where
    the percentages are not 0 ≤ start ≤ end ≤ 1.
    """
    require_percents(start_percent, end_percent, asked_by)
    there = sites_of(model)
    sites = select_sites(require_shown(there, asked_by) if technique.needs_input else there, layers, kinds, by_row)
    if features:
        sites += select_features(model.get_model_object("diffusion_model"), features)
    names = frozenset(site.name for site in sites)
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    optional = optional_sites(sites, layers)
    tapped = Tapped(technique, asked_by, names, start_percent, end_percent, network_of(model), optional)
    options[TECHNIQUES] = tuple(sorted((*options.get(TECHNIQUES, ()), tapped), key=lambda each: each.technique.stage))
    wrappers: dict[str, Callable] = {
        WrappersMP.OUTER_SAMPLE: _around_run,
        WrappersMP.PREPARE_SAMPLING: _around_loading,
        WrappersMP.APPLY_MODEL: _around_model_call,
    }
    put_wrappers(clone, _WRAPPER, wrappers)
    return clone, sites


def kept_runs(model: ModelPatcher) -> list[KeptRuns]:
    """Of the techniques on ``model`` that keep something of its runs."""
    tapped = model.model_options["transformer_options"].get(TECHNIQUES, ())
    return [each.technique.kept for each in tapped if each.technique.kept is not None]


def _around_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE: every node must have a step to act at, and a run that ends well has reached every site."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    sampling = guider.model_patcher.get_model_object("model_sampling")
    size = tuple(noise.shape[-2:]) if noise.ndim > 3 else None
    run = Run(Steps(sigmas, options.get(TECHNIQUES, ()), sampling, ANY_ORDER in options), size=size)
    carry_on(run, options.get(TECHNIQUES, ()), guider, noise, sigmas)
    options[RUN] = run
    for each in options.get(TECHNIQUES, ()):
        each.technique.begin()
    try:
        with rows_told(options, noise), uncompiled_if_unguarded(guider.model_options):
            # a copy: ComfyUI's uni_pc writes into it, and other nodes have the same
            result = executor(noise, latent_image, sampler, sigmas.clone(), *args, **kwargs)
    finally:
        del options[RUN]
    run.require_all_reached()
    keep(run, result)
    return result


def _around_loading(executor, model, noise_shape, conds, *args, **kwargs):
    """PREPARE_SAMPLING: of a clip that runs in chunks, the model needs memory for one; a ControlNet runs at once."""
    length, frames = _frames_per_batch(kwargs["model_options"]["transformer_options"]), noise_shape[0]
    if not 0 < length < frames or any("control" in cond for each in conds.values() for cond in each):
        return executor(model, noise_shape, conds, *args, **kwargs)
    with of_a_chunk(conds, frames, length):
        return executor(model, [length, *noise_shape[1:]], conds, *args, **kwargs)


def _around_model_call(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """APPLY_MODEL: opens the tap for the length of one model call, or of every chunk of its frames."""
    require_taken(executor.class_obj.diffusion_model, x, kwargs)
    options, inputs = transformer_options or {}, (x, t, c_concat, c_crossattn, control)
    return in_groups(partial(_call_of_frames, executor, options), inputs, kwargs, options)


def _call_of_frames(executor, options: dict, inputs: tuple, kwargs: dict) -> Tensor:
    x, *_ = inputs
    branches, length = len(branches_of(options)), _frames_per_batch(options)
    if RUN in options:
        require_whole_clip(options[RUN], len(x) // branches)
    if not 0 < length < len(x) // branches:
        return _tapped_call(executor, inputs, kwargs, options)

    pictures = family_of(executor.class_obj.diffusion_model).draws_pictures
    indices = frame_indices(x.shape, branches, options, pictures)
    guard = ChunkGuard(options, len(indices), len(x))
    sigma = float(inputs[1].flatten()[0])
    ahead, ahead_for = _ahead(executor.class_obj.model_sampling, options, indices, sigma)

    def call(chunk: Chunk, all_inputs: Any) -> Tensor:
        throw_exception_if_processing_interrupted()
        inputs, kwargs = all_inputs
        with sizes_explained():
            output = _tapped_call(executor, inputs, kwargs, guard.watched(chunk.told(options)), chunk)
        if not chunk.ahead_for:
            guard.after(chunk)
        return output

    return in_chunks(call, (inputs, kwargs), len(x), indices, length, ahead, ahead_for)


def _ahead(model_sampling: Any, options: dict, indices: tuple[int, ...], sigma: float) -> tuple[tuple[int, ...], str]:
    """The frames that run before the chunks do, and the node that asks for it.

    ChunkError where two nodes ask for different ones.
    """
    asked = {
        frames: each.asked_by
        for each in options.get(TECHNIQUES, ())
        if each.is_active(sigma, model_sampling) and (frames := each.technique.ahead(indices, sigma))
    }
    if len(asked) > 1:
        raise ChunkError(
            f"{' and '.join(asked.values())} let different frames run ahead of the chunks of a clip. Give them the "
            "same seed and chunk, or set frames_per_batch to 0."
        )
    return next(iter(asked.items()), ((), ""))


def _frames_per_batch(options: dict) -> int:
    """The least that is asked for, whether active or not: memory does not grow at other steps. 0 for all frames."""
    lengths = (each.technique.frames_per_batch for each in options.get(TECHNIQUES, ()))
    return min(filter(None, lengths), default=0)


def _tapped_call(executor, inputs: tuple, kwargs: dict, options: dict, chunk: Chunk | None = None) -> Tensor:
    base_model, (x, t, _, c_crossattn, _) = executor.class_obj, inputs
    sigma = float(t.flatten()[0])
    if RUN in options:
        options[RUN].steps.call(sigma)
    active = [each for each in options.get(TECHNIQUES, ()) if each.is_active(sigma, base_model.model_sampling)]
    if chunk is None and not active:
        return executor(*inputs, options, **kwargs)
    # newer versions of ComfyUI tell the parts of packed latents by the model, too
    shapes = kwargs.get("latent_shapes") or getattr(base_model, "latent_shapes", None) or [x.shape]
    shape = x.shape if x.ndim > 3 else (len(x), *shapes[0][1:])
    text_tokens = c_crossattn.shape[1] if isinstance(c_crossattn, Tensor) else 0
    opened = OpenTap(active, base_model.diffusion_model, options, shape, text_tokens, sigma, chunk)
    if active:
        require_fit(base_model.diffusion_model, kwargs, [each.asked_by for each in active])
    with undone_after(options) as stack:
        opened.on_modules(stack)
        result = executor(*inputs, opened.options, **kwargs)
    opened.require_reached()
    return result
