"""Source and target denoised together, the target attending as the source does: IE-Adapt's editing (§4.2, Algorithm 1).

Both start from the same latent and take the same steps of the same sampler. (The paper's line 9 mixes DDPM with DDIM
and never updates the source; it is not followed.) The model gets the branches of both in one call, for which the two
clips lie side by side in the channels: ComfyUI cuts areas and context windows out of both alike, and every branch is
given its own clip when the model is called. Where it does not put them into one, as when prompts differ in length, they
are calls that go through the model in step.

All other code sees a positive and a negative branch for each clip, as in plain sampling. Only the branch's uuid says
which clip it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from comfy.model_management import intermediate_device
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import prepare_mask
from comfy.samplers import KSAMPLER, CFGGuider, Sampler, calc_cond_batch, process_conds
from comfy.utils import PROGRESS_BAR_ENABLED
from latent_preview import prepare_callback
from torch import Tensor

from ..attention.keys import PAIRS
from ..attention.sites import UnknownModelError, known_family
from ..attention.wrappers import put_wrappers
from ..noise.streams import frames_axis
from ..techniques.branches import OfClip, branches_of
from ..techniques.choice import ALL_HEADS, Choice
from ..techniques.pairs import UNPAIRED, UnpairedBranchError
from ..techniques.prompt_to_prompt import Alignment
from .animatediff import AnimateDiff
from .branches import StepBranches
from .by_clip import ByClip
from .clip_guidance import Clip, ClipGuidance
from .controls import SeenControls, alike, with_controls
from .finite import require_finite_prediction, step_at
from .latents import input_scale, noise_for, require_clip_alone, require_falling, require_levels, samples_for
from .lockstep import Lockstep, NothingToTakeError
from .pairing import PairSampler
from .partners import acting, complete_areas, in_order, made_ready, partners
from .replacing import Replace, Replacing, require_words
from .stages import acts_in_stage, require_no_noise_mask, target_samples
from .told import Conds, in_told_order, meanwhile, told
from .trajectory import Pinned, Trajectory
from .unfit import explain_unfit_inputs

SOURCE, TARGET = range(2)
"""The clips, in the order of their rows."""


@dataclass(frozen=True)
class Prompts:
    """CONDITIONING of the source, of the target, and the negative one that they share."""

    source: list
    target: list
    negative: list


@dataclass(frozen=True)
class Edit:
    """What is replaced, and how strongly each clip is guided.

    ``layers``: a selector of self-attention layers (:func:`..attention.sites.select_sites`), "" for none, and at which
    of their heads (:mod:`..techniques.choice`). ``cross_map``
    takes all cross-attention layers instead, ``map_and_cross`` and ``blend`` those, too, by ``alignment``. At
    ``source_cfg`` 1 the source has no negative branch, and both of the target's take from its positive one; at
    cross-attention none does. ``mask``: (H, W) or (frames, H, W) of any size, 0 where the target keeps the source, 1
    where it is free.
    """

    layers: str
    replace: Replace = "map"
    cfg: float = 7.5
    source_cfg: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    mask: Tensor | None = None
    alignment: Alignment | None = None
    choice: Choice = ALL_HEADS


def sample_edit(
    model: ModelPatcher,
    prompts: Prompts,
    edit: Edit,
    noise: Any,
    sampler: Sampler,
    sigmas: Tensor,
    latent: Mapping[str, Any],
    asked_by: str,
    target_latent: Mapping[str, Any] | None = None,
    trajectory: Trajectory | None = None,
) -> tuple[Tensor, Tensor]:
    """The latents of target and source, shaped as those of ``latent``. NOISE, SAMPLER, SIGMAS, LATENT as ComfyUI's.

    ``target_latent``: where the target starts, if not at ``latent``, too (:mod:`.stages`). ``trajectory``: what the
    source is set to at every step (:mod:`.trajectory`).

    Raises:
        ValueError: ``sampler`` cannot take the same steps with both, or an input does not fit the others.
        TrajectoryError: ``trajectory`` is of another run.
        AlignmentError: the words of the prompts are not aligned as ``edit`` needs.
        UnpairedBranchError: the branches of source and target cannot go through the model in step.
        UnknownModelError, NoSuchSiteError: as in :mod:`..attention`.
    """
    require_editable(model, latent, asked_by)
    require_falling(sigmas)
    require_levels(model, sigmas)
    require_words(model, edit, prompts)
    samples, target = samples_for(model, latent), None
    for name, given in (("target_latent", target_latent), ("trajectory", trajectory)):
        if given is not None:
            require_no_noise_mask(latent, name)
    pinned = None if trajectory is None else Pinned(trajectory, model, sigmas, samples.shape)
    in_stages = target_latent is not None or sigmas[-1] > 0
    if in_stages and not acts_in_stage(model, sigmas, edit.start_percent, edit.end_percent, asked_by):
        edit = replace(edit, layers="", replace="map")
    guider = EditGuider(model, prompts, edit, samples.shape, asked_by, pinned)
    if target_latent is not None:
        target = guider.with_kept(samples, target_samples(model, target_latent, samples))
    drawn = noise_for(noise, {**latent, "samples": samples})
    with explain_unfit_inputs(model, {"samples": samples}, **vars(prompts)):
        both = guider.sample(
            drawn,
            samples,
            PairSampler(sampler, target),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not PROGRESS_BAR_ENABLED,
            seed=noise.seed,
        )
    source, edited = both.to(intermediate_device()).chunk(2)
    if pinned is not None:
        source = pinned.end(model, sampler, source)
        edited = guider.with_kept(source, edited)
    return edited, source


def require_editable(model: ModelPatcher, latent: Mapping[str, Any], asked_by: str) -> None:
    """UnknownModelError for a model that takes one row a call, ValueError for a LATENT of several modalities."""
    family = known_family(model.get_model_object("diffusion_model"))
    if family is not None and family.one_row:
        raise UnknownModelError(
            f"{asked_by}: {family.name} takes one clip with one conditioning in a model call, which edits do not "
            "support. Use a model of another family."
        )
    require_clip_alone(latent)


class EditGuider(CFGGuider):
    """Denoises (2 · rows, …), the source's rows before the target's, for :class:`.pairing.PairSampler`.

    ``shape``: of one clip's latent. ``pinned``: the source, where it is not sampled. Errors as in :func:`sample_edit`.
    """

    def __init__(
        self,
        model: ModelPatcher,
        prompts: Prompts,
        edit: Edit,
        shape: Sequence[int],
        asked_by: str,
        pinned: Pinned | None = None,
    ) -> None:
        self._lockstep = Lockstep()
        self._replacing = Replacing(edit, self._lockstep)
        model = self._replacing.on(model, asked_by)
        put_wrappers(model, "coherence.editing", {WrappersMP.PREPARE_SAMPLING: _reserve_for_both})
        super().__init__(model)
        self.inner_set_conds({"source": prompts.source, "target": prompts.target})
        self.inner_set_conds(dict.fromkeys(("source_negative", "target_negative"), prompts.negative))
        self._edit, self._rows, self._pinned = edit, 2 * shape[0], pinned
        self._mask = None if edit.mask is None else _latent_mask(edit.mask, shape).to(model.load_device)

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more
    ):
        """As ComfyUI's, but each clip has its conditionings made ready by themselves: ComfyUI gives all lists the
        areas, GLIGEN boxes and ControlNets of the others, as if there were one clip."""
        conds, self._conds, clean = self.conds, {}, latent_image
        if clean is not None and torch.count_nonzero(clean) > 0:
            clean = self.inner_model.process_latent_in(clean)
        facts = {"latent_image": clean, "denoise_mask": denoise_mask, "seed": seed, **more}
        prepare = partial(process_conds, self.inner_model, noise, device=device, **facts)
        for names in (("source", "source_negative"), ("target", "target_negative")):
            ready = made_ready(prepare, *(conds[name] for name in names))
            self._conds |= dict(zip(names, ready, strict=True))
        for one, other in (("source", "target"), ("source_negative", "target_negative")):
            complete_areas(self._conds[one], self._conds[other])
        self.conds = {}
        try:
            given = noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
            return super().inner_sample(*given, **more)
        finally:
            self.conds = self._conds

    def pair_branches(self, sampler: Sampler, options: Mapping[str, Any]) -> None:
        """Before the first step: the branches of both clips, from the conditionings that ComfyUI made ready."""
        self._in_one_call = self._in_pairs = True
        self._scales_input = isinstance(sampler, KSAMPLER)
        self._by_clip = ByClip()
        self._guide = ClipGuidance(self._by_clip.state, options)
        controls = SeenControls(_shown_own_clip, alike)
        self._branches = {
            name: _branch(clip, index, self._conds[name], controls)
            for name, clip, index in (
                ("source", SOURCE, 0),
                ("target", TARGET, 0),
                ("source_negative", SOURCE, 1),
                ("target_negative", TARGET, 1),
            )
        }

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Denoised (2 · rows, …): ComfyUI's classifier-free guidance, of each clip with its own scale."""
        if len(x) != self._rows:
            raise ValueError(
                f"sampler: it calls the model with {len(x)} rows of latents, but source and target are {self._rows}. "
                "Choose a sampler that denoises all of them at once, such as euler."
            )
        options = {} if model_options is None else model_options
        if "sampler_calc_cond_batch_function" in options or isinstance(options.get("context_handler"), StepBranches):
            raise ValueError(
                "A guidance node on this model calls it in its own way, but an edit must call it for source and "
                "target itself. Remove that node."
            )
        if self._pinned is not None:
            x = self._with_pinned(self._pinned, x, timestep[0])
        with AnimateDiff.step(self.inner_model, x.chunk(2)[SOURCE], timestep.chunk(2)[SOURCE], options) as animatediff:
            return self._predicted(x, timestep, options, animatediff)

    def _predicted(self, x: Tensor, timestep: Tensor, options: dict[str, Any], animatediff: AnimateDiff) -> Tensor:
        always = options.get("disable_cfg1_optimization", False)
        scales = [animatediff.scale_or(scale) for scale in (self._edit.source_cfg, self._edit.cfg)]
        guided = [always or not (isinstance(each, int | float) and math.isclose(each, 1.0)) for each in scales]
        groups: list[tuple[str, ...]] = [("source", "target")]
        if guided[TARGET]:
            groups.append(("source_negative" if guided[SOURCE] else "source", "target_negative"))
        elif guided[SOURCE]:
            groups.append(("source_negative",))
        denoised = self._denoised(groups, x, timestep, options)
        nothing = torch.zeros_like(denoised["source"])
        outputs = [(denoised[name], denoised.get(f"{name}_negative", nothing)) for name in ("source", "target")]
        positive, negative = map(self._with_background, *outputs)
        outputs[TARGET] = positive, negative if guided[SOURCE] else outputs[TARGET][1]
        clips = [
            Clip(
                (self._conds[name], self._conds[f"{name}_negative"] if guided[clip] else None),
                outputs[clip],
                animatediff.scaled(outputs[clip][0], self._edit.source_cfg if clip == SOURCE else self._edit.cfg),
                x.chunk(2)[clip],
                timestep.chunk(2)[clip],
                animatediff.adapted,
            )
            for clip, name in ((SOURCE, "source"), (TARGET, "target"))
        ]
        with meanwhile(options, model_function_wrapper=_refuse_call):
            source, target = self._guide(self.inner_model, clips, options).chunk(2)
        sigmas = options.get("transformer_options", {}).get("sample_sigmas", timestep)
        for name, clip in (("source", source), ("target", target)):
            require_finite_prediction(clip, step_at(timestep[0], sigmas), sigmas, f"the {name} clip")
        if self._pinned is not None:
            source = self._pinned.denoised(float(timestep[0]), source)
        return torch.cat([source, self._with_background(source, target)])

    def _with_pinned(self, pinned: Pinned, x: Tensor, sigma: Tensor) -> Tensor:
        """Both clips, the source where its trajectory is."""
        source, target = x.chunk(2)
        source = pinned.at(float(sigma), source)
        if not self._scales_input:
            source = source * input_scale(self.inner_model.model_sampling, sigma)
        return torch.cat([source, self.with_kept(source, target)])

    def _denoised(
        self, groups: list[tuple[str, ...]], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Every branch of ``groups``: all in one call or, where ComfyUI splits that, a call for each group or, where it
        splits these, too, two calls in step."""
        for pair in (pair for pair in groups if len(pair) == 2):
            if self._replacing.active:
                self._replacing.pair(*pair, self._paired(*pair, timestep[0]))
        call = partial(self._call, x=x, timestep=timestep, options=options)
        call_model = partial(self._call_model, told(options.get("model_function_wrapper")))
        on_one_gpu = {"multigpu_clones": None}  # on several the branches would part
        with meanwhile(options, model_function_wrapper=call_model, **on_one_gpu):
            if self._replacing.looks(float(timestep[0]), self.inner_model.model_sampling):
                with self._replacing.looking():
                    call(("source",))
            if self._in_one_call:
                try:
                    return call(tuple(dict.fromkeys(name for group in groups for name in group)))
                except UnpairedBranchError:
                    self._in_one_call = False
            return {name: out for group in groups for name, out in self._of_pair(group, call).items()}

    def _of_pair(
        self, group: tuple[str, ...], call: Callable[[tuple[str, ...]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        if self._in_pairs or len(group) == 1:
            try:
                return call(group)
            except UnpairedBranchError:
                self._in_pairs = False
        if len({id(each.get("hooks")) for name in group for each in self._branches[name]}) > 1:
            raise UnpairedBranchError(UNPAIRED)  # the model's weights would change between them
        try:
            of_source, of_target = self._lockstep.run(*(partial(call, (name,)) for name in group))
        except NothingToTakeError:
            raise UnpairedBranchError(UNPAIRED) from None
        return {**of_source, **of_target}

    def _paired(self, source: str, target: str, sigma: Tensor) -> list[tuple[OfClip, OfClip | None]]:
        sources, targets = (acting(self._branches[name], sigma) for name in (source, target))
        found = partners(sources, targets, (source, target))
        return [(taker["uuid"], None if donor is None else donor["uuid"]) for taker, donor in found]

    def _call(self, names: tuple[str, ...], x: Tensor, timestep: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
        """The branches ``names``, positives first: ComfyUI has the rows in reverse."""
        sigma = timestep.chunk(2)[0]
        if self._scales_input:
            x = x * input_scale(self.inner_model.model_sampling, sigma[0])
        conds = [self._branches[name] for name in names]
        out = calc_cond_batch(self.inner_model, conds, torch.cat(x.chunk(2), dim=1), sigma, options)
        return {name: each.chunk(2, dim=1)[0] for name, each in zip(names, out, strict=True)}

    def _call_model(self, call: Callable, apply_model: Callable, args: dict[str, Any]) -> Tensor:
        """ComfyUI's ``model_function_wrapper``: around another pack's, which sees nothing unusual."""
        options = args["c"]["transformer_options"]
        if not self._lockstep.is_running:
            self._replacing.require_donors(branches_of(options))
        x = _own_clip(args["input"], options)
        told_of = {**self._by_clip.options(options, len(x)), PAIRS: self._replacing.pairs}
        c = {**args["c"], "transformer_options": told_of}
        out = call(apply_model, {**args, "input": x, "c": c})
        return torch.cat([out, out], dim=1)

    def _with_background(self, source: Tensor, target: Tensor) -> Tensor:
        """``target`` as ``source`` where the mask says so: then the sampler's own latents stay the same there, as they
        start alike and a :class:`.pairing.PairSampler` treats every value for itself."""
        return target if self._mask is None else torch.lerp(source, target, self._mask.to(target))

    def with_kept(self, source: Tensor, target: Tensor) -> Tensor:
        """``target``, but the very ``source`` where the mask is 0."""
        return target if self._mask is None else torch.where(self._mask.to(source.device) == 0, source, target)


def _branch(clip: int, index: int, conds: Conds, controls: SeenControls) -> Conds:
    """A copy of ``conds`` whose uuids tell whose branches they are, and whose ControlNets see that clip."""
    own = [{**entry, "uuid": OfClip(uuid4(), index, clip)} for entry in in_order(conds)]
    return with_controls(own, controls) or []


def _shown_own_clip(inputs: tuple[Tensor, Tensor, dict], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a ControlNet sees: for each branch, the clip that it is of."""
    x, *others = inputs
    return in_told_order((_own_clip(x, options), *others), options)


def _own_clip(x: Tensor, options: dict[str, Any]) -> Tensor:
    """Rows with both clips in their channels → rows with the one that their branch is of."""
    uuids = options["uuids"]
    return torch.cat([x.chunk(2, dim=1)[uuid.clip] for x, uuid in zip(x.chunk(len(uuids)), uuids, strict=True)])


def _latent_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A MASK in the size of latents of ``shape``. ValueError for a number of frames that a batch of frames has not."""
    frames = 1 if mask.ndim == 2 else len(mask)
    if len(shape) in (4, 5) and frames_axis(shape) == 0:
        if frames not in (1, shape[0]):
            raise ValueError(f"mask has {frames} frames and latent_image {shape[0]}; expected as many, or one for all.")
        mask = mask.reshape(frames, *[1] * (len(shape) - 3), *mask.shape[-2:])  # else 5-D latents get the frames' mean
    return prepare_mask(mask.float(), shape, mask.device)


def _reserve_for_both(executor: Callable, model: ModelPatcher, noise_shape: Sequence[int], *args: Any, **kwargs: Any):
    """PREPARE_SAMPLING: ComfyUI makes room for two branches, an edit has four."""
    return executor(model, [2 * noise_shape[0], *noise_shape[1:]], *args, **kwargs)


def _refuse_call(*_args: Any) -> Tensor:
    raise ValueError(
        "A guidance node on this model calls it once more in every step, which an edit cannot do for two clips at "
        "once. Remove that node."
    )
