"""Source and target denoised together, the target attending as the source does: IE-Adapt's editing (§4.2, Algorithm 1).

Both start from the same latent and take the same steps of the same sampler. (The paper's line 9 mixes DDPM with DDIM
and never updates the source; it is not followed.) The model gets the branches of both in one call, for which the two
clips lie side by side in the channels: ComfyUI cuts areas and context windows out of both alike, and every branch is
given its own clip when the model is called.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args
from uuid import UUID, uuid4

import torch
from comfy.model_management import intermediate_device
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import prepare_mask
from comfy.samplers import KSAMPLER, CFGGuider, Sampler, calc_cond_batch, cfg_function
from comfy.utils import PROGRESS_BAR_ENABLED
from latent_preview import prepare_callback
from torch import Tensor

from ..attention.registry import SELECTABLE
from ..attention.replacement import Replacement, UnpairedBranchError
from ..attention.tap import tap
from .branches import StepBranches
from .finite import require_finite_prediction, step_at
from .latents import input_scale, noise_for, require_falling, require_levels, samples_for
from .pairing import PairSampler
from .unfit import told_if_unfit

Replace = Literal["map", "key_value", "value", "cross_map"]
REPLACES = get_args(Replace)

Conds = list[dict[str, Any]]
"""A conditioning as ComfyUI's samplers have it: each entry is a branch of the model call."""


@dataclass(frozen=True)
class Prompts:
    """CONDITIONING of the source, of the target, and the negative one that they share."""

    source: list
    target: list
    negative: list


@dataclass(frozen=True)
class Edit:
    """What is replaced, and how strongly each clip is guided.

    ``layers``: a selector of self-attention layers (:func:`..attention.sites.select_sites`), "" for none; ``cross_map``
    takes all cross-attention layers instead. At ``source_cfg`` 1 the source has no negative branch, and both of the
    target's take from its positive one. ``mask``: (H, W) or (frames, H, W) of any size, 0 where the target keeps the
    source, 1 where it is free.
    """

    layers: str
    replace: Replace = "map"
    cfg: float = 7.5
    source_cfg: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    mask: Tensor | None = None


def sample_edit(
    model: ModelPatcher,
    prompts: Prompts,
    edit: Edit,
    noise: Any,
    sampler: Sampler,
    sigmas: Tensor,
    latent: Mapping[str, Any],
    asked_by: str,
) -> tuple[Tensor, Tensor]:
    """The latents of target and source, shaped as those of ``latent``. NOISE, SAMPLER, SIGMAS, LATENT as ComfyUI's.

    Raises:
        ValueError: ``sampler`` cannot take the same steps with both, or an input does not fit the others.
        UnpairedBranchError: ComfyUI cannot put the branches of source and target into one call.
        UnknownModelError, NoSuchSiteError: as in :mod:`..attention`.
    """
    require_falling(sigmas)
    if latent["samples"].is_nested:
        raise ValueError("latent_image holds a clip and something else, such as sound; expected a clip alone.")
    require_levels(model, sigmas)
    samples = samples_for(model, latent)
    guider = EditGuider(model, prompts, edit, samples.shape, asked_by)
    drawn = noise_for(noise, {**latent, "samples": samples})
    with told_if_unfit(model, {"samples": samples}, **vars(prompts)):
        both = guider.sample(
            drawn,
            samples,
            PairSampler(sampler),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not PROGRESS_BAR_ENABLED,
            seed=noise.seed,
        )
    source, target = both.to(intermediate_device()).chunk(2)
    return target, source


class EditGuider(CFGGuider):
    """Denoises (2 · rows, …), the source's rows before the target's, for :class:`.pairing.PairSampler`.

    ``shape``: of one clip's latent. Errors as in :func:`sample_edit`.
    """

    def __init__(self, model: ModelPatcher, prompts: Prompts, edit: Edit, shape: Sequence[int], asked_by: str) -> None:
        cross = edit.replace == "cross_map"
        layers = "*" if cross else edit.layers
        self._replacement = Replacement("map" if edit.replace == "cross_map" else edit.replace, {})
        if layers:
            window = {"start_percent": edit.start_percent, "end_percent": edit.end_percent}
            kinds = ("cross",) if cross else SELECTABLE
            model, _ = tap(model, self._replacement, layers=layers, kinds=kinds, asked_by=asked_by, **window)
        else:
            model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "coherence.editing", _reserve_for_both)
        super().__init__(model)
        self.inner_set_conds({"positive": prompts.target, "negative": prompts.negative, "source": prompts.source})
        self._edit, self._replaces, self._rows = edit, bool(layers), 2 * shape[0]
        self._mask = None if edit.mask is None else _latent_mask(edit.mask, shape).to(model.load_device)

    def pair_branches(self, sampler: Sampler) -> None:
        """Before the first step: the branches of both clips, from the conditionings that ComfyUI made ready."""
        self._side_of: dict[UUID, int] = {}
        self._in_one_call = True
        self._scales_input = isinstance(sampler, KSAMPLER)
        entries = [entry for conds in self.conds.values() for entry in conds]
        controls = {id(each["control"]): self._of_own_clip(each["control"]) for each in entries if "control" in each}
        self._branches = {
            name: self._branch(side, self.conds[conds], controls)
            for name, side, conds in (
                ("source", 0, "source"),
                ("target", 1, "positive"),
                ("source_negative", 0, "negative"),
                ("target_negative", 1, "negative"),
            )
        }

    def _branch(self, side: int, conds: Conds, controls: dict[int, Any]) -> Conds:
        """A copy of ``conds`` with uuids that tell whose branches they are, and ``controls`` by the id of theirs."""
        branch = [{**entry, "uuid": uuid4()} for entry in conds]
        self._side_of.update((entry["uuid"], side) for entry in branch)
        return [
            {**entry, "control": controls[id(entry["control"])]} if "control" in entry else entry for entry in branch
        ]

    def _of_own_clip(self, control: Any) -> Any:
        """A copy of a ControlNet that sees, for each branch, the clip that the branch is of."""
        own = copy.copy(control)

        def get_control(x: Tensor, t: Tensor, cond: dict, branches: int, options: dict[str, Any]) -> Any:
            return type(control).get_control(own, self._own_clip(x, options), t, cond, branches, options)

        own.get_control = get_control
        return own

    def _own_clip(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Rows with both clips in their channels → rows with the one that their branch is of."""
        uuids = options["uuids"]
        sides = [x.chunk(2, dim=1)[self._side_of[uuid]] for x, uuid in zip(x.chunk(len(uuids)), uuids, strict=True)]
        return torch.cat(sides)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Denoised (2 · rows, …): ComfyUI's classifier-free guidance, of each clip with its own scale."""
        if len(x) != self._rows:
            raise ValueError(
                f"sampler: it calls the model with {len(x)} rows of latents, but source and target are {self._rows}. "
                "Choose a sampler that denoises all of them at once, such as euler."
            )
        options, scales = model_options or {}, (self._edit.source_cfg, self._edit.cfg)
        always = options.get("disable_cfg1_optimization", False)
        source_guided, target_guided = (always or not math.isclose(scale, 1.0) for scale in scales)
        source_negative = "source_negative" if source_guided else "source"
        target_negative = "target_negative" if target_guided else "target"
        groups: list[tuple[str, ...]] = [("source", "target")]
        if target_guided:
            groups.append((source_negative, target_negative))
        elif source_guided:
            groups.append((source_negative,))
        denoised = self._denoised(groups, x, timestep, options)
        cond, uncond = (
            self._with_background(torch.cat([denoised[source], denoised[target]]))
            for source, target in (("source", "target"), (source_negative, target_negative))
        )
        scale = scales[1] if scales[0] == scales[1] else _rows_of(*scales, x)
        guided = self._guided(cond, uncond, scale, x, timestep, options)
        sigmas = options.get("transformer_options", {}).get("sample_sigmas", timestep)
        for clip, denoised_clip in zip(("source", "target"), guided.chunk(2), strict=True):
            require_finite_prediction(denoised_clip, step_at(timestep[0], sigmas), sigmas, f"the {clip} clip")
        return self._with_background(guided)

    def _denoised(
        self, groups: list[tuple[str, ...]], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Every branch of ``groups``: all in one call or, where ComfyUI splits that, a call for each group."""
        if "sampler_calc_cond_batch_function" in options or isinstance(options.get("context_handler"), StepBranches):
            raise ValueError(
                "A guidance node on this model calls it in its own way, but an edit needs source and target in one "
                "call. Remove that node."
            )
        self._replacement.source_of.update(uuids for pair in groups if len(pair) == 2 for uuids in self._paired(*pair))
        if self._in_one_call:
            every = tuple(dict.fromkeys(name for group in groups for name in group))
            try:
                return self._call(every, x, timestep, options)
            except UnpairedBranchError:
                self._in_one_call = False
        return {name: out for group in groups for name, out in self._call(group, x, timestep, options).items()}

    def _paired(self, source: str, target: str) -> list[tuple[UUID, UUID]]:
        sources, targets = self._branches[source], self._branches[target]
        if len(sources) not in (1, len(targets)):
            raise ValueError(
                f"{source} combines {len(sources)} conditionings and {target} {len(targets)}: it is not clear which "
                "belong together. Combine the same number in each, or give the source one alone."
            )
        sources = sources * len(targets) if len(sources) == 1 else sources
        return [(t["uuid"], s["uuid"]) for t, s in zip(targets, sources, strict=True)]

    def _call(self, names: tuple[str, ...], x: Tensor, timestep: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
        sigma = timestep.chunk(2)[0]
        if self._scales_input:
            x = x * input_scale(self.inner_model.model_sampling, sigma[0])
        call_model = partial(self._call_model, options.get("model_function_wrapper"))
        options = {
            **_prepared_by_animatediff(options, self.inner_model, x, sigma),
            "model_function_wrapper": call_model,
        }
        options.pop("multigpu_clones", None)  # on several GPUs the branches would part
        conds = [self._branches[name] for name in names]
        out = calc_cond_batch(self.inner_model, conds, torch.cat(x.chunk(2), dim=1), sigma, options)
        return {name: each.chunk(2, dim=1)[0] for name, each in zip(names, out, strict=True)}

    def _call_model(self, wrapper: Callable | None, apply_model: Callable, args: dict[str, Any]) -> Tensor:
        """ComfyUI's ``model_function_wrapper``: around another pack's ``wrapper``, which sees nothing unusual."""
        options = args["c"]["transformer_options"]
        if self._replaces:
            self._replacement.donors([*zip(options["cond_or_uncond"], options["uuids"], strict=True)])
        x = self._own_clip(args["input"], options)
        out = wrapper(apply_model, {**args, "input": x}) if wrapper else apply_model(x, args["timestep"], **args["c"])
        return torch.cat([out, out], dim=1)

    def _guided(
        self,
        cond: Tensor,
        uncond: Tensor,
        scale: float | Tensor,
        x: Tensor,
        timestep: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """ComfyUI's guidance with other nodes' changes to it, as long as they do not call the model."""
        options = {**options, "model_function_wrapper": _refuse_call}
        conds = {name: self.conds[name] for name in ("positive", "negative")}
        for change in options.get("sampler_pre_cfg_function", ()):
            cond, uncond = change(
                {
                    "conds": [*conds.values()],
                    "conds_out": [cond, uncond],
                    "cond_scale": scale,
                    "timestep": timestep,
                    "sigma": timestep,
                    "input": x,
                    "model": self.inner_model,
                    "model_options": options,
                }
            )
        return cfg_function(
            self.inner_model,
            cond,
            uncond,
            scale,
            x,
            timestep,
            model_options=options,
            cond=conds["positive"],
            uncond=conds["negative"],
        )

    def _with_background(self, both: Tensor) -> Tensor:
        """The target's rows as the source's where the mask says so: then the sampler's own latents stay the same there,
        as they start alike and a :class:`.pairing.PairSampler` treats every value for itself."""
        if self._mask is None:
            return both
        source, target = both.chunk(2)
        return torch.cat([source, torch.lerp(source, target, self._mask.to(both))])


def _rows_of(source: float, target: float, x: Tensor) -> Tensor:
    """A number for the source's rows of ``x`` and one for the target's, to be multiplied with it."""
    return x.new_tensor([source, target]).repeat_interleave(len(x) // 2).reshape(-1, *[1] * (x.ndim - 1))


def _latent_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A MASK in the size of latents of ``shape``. ValueError for a number of frames that 4-D latents have not."""
    frames = 1 if mask.ndim == 2 else len(mask)
    if len(shape) == 4 and frames not in (1, shape[0]):
        raise ValueError(f"mask has {frames} frames and latent_image {shape[0]}; expected as many, or one for all.")
    return prepare_mask(mask.float(), shape, mask.device)


def _prepared_by_animatediff(options: dict[str, Any], model: Any, x: Tensor, sigma: Tensor) -> dict[str, Any]:
    """Model options as AnimateDiff-Evolved's sampling function gives them, which a guider of one's own leaves out."""
    transformer_options = options["transformer_options"]
    state = transformer_options.get("ADGS")
    if state is None:
        return options
    state.initialize(model, options)
    state.prepare_current_keyframes(x=x, timestep=sigma, transformer_options=transformer_options)
    return {**options, "transformer_options": {**transformer_options, "ad_params": state.create_exposed_params()}}


def _reserve_for_both(executor: Callable, model: ModelPatcher, noise_shape: Sequence[int], *args: Any, **kwargs: Any):
    """PREPARE_SAMPLING: ComfyUI makes room for two branches, an edit has four."""
    return executor(model, [2 * noise_shape[0], *noise_shape[1:]], *args, **kwargs)


def _refuse_call(*_args: Any) -> Tensor:
    raise ValueError(
        "A guidance node on this model calls it once more in every step, which an edit cannot do for two clips at "
        "once. Remove that node."
    )
