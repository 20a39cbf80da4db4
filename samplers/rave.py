"""RAVE (arXiv 2312.04524): several frames drawn as one picture, shuffled at every step.

At every step the F frames of a clip, and their control images, are put in a new random order and cut into F/n² grids of
n × n. The network sees each grid as one picture, so that its self-attention and convolutions join frames (§3.2); over
the steps the looks of all frames mix (§3.3, noise shuffling):

    x_t → shuffle → tile → ε(·, text, tiled control) → cut → unshuffle → CFG and the sampler's step

A sampler's step treats every value of a latent for itself, so cutting before it is the authors' code, which samples
grids and cuts them for the next shuffle. Their code uses the first ⌊F/n²⌋·n² frames of a video; a sampler cannot drop
frames, so other numbers are refused.

It stands around ComfyUI's evaluation of conditionings: above ControlNets and every branch's model call, below guidance.
The order depends on the seed and the step's noise level alone, so it is the same for all branches, however memory
splits them, and in a run that is split into two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy.utils import common_upscale
from torch import Tensor

from ..attention.keys import TECHNIQUES
from ..attention.sites import UnknownModelError, sites_of
from ..attention.wrappers import put_wrappers
from ..frames.streams import of_level
from ..techniques.technique import Stage
from .controls import SeenControl, SeenControls
from .told import Conds

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class GridError(ValueError):
    """Something in a run cannot be drawn in grids of frames."""


def tiled(x: Tensor, order: Tensor, side: int) -> Tensor:
    """Frames (F, …, H, W) in ``order`` as grids (F / side², …, side · H, side · W), row by row."""
    cells = x[order.to(x.device)].unflatten(0, (-1, side, side))
    return cells.movedim(1, -3).movedim(1, -2).flatten(-4, -3).flatten(-2, -1)


def cut(grids: Tensor, order: Tensor, side: int) -> Tensor:
    """The frames of :func:`tiled`."""
    cells = grids.unflatten(-1, (side, -1)).unflatten(-3, (side, -1))
    return cells.movedim(-2, 1).movedim(-3, 1).flatten(0, 2)[order.argsort().to(grids.device)]


def order_of(frames: int, seed: int, sigma: float, sigmas: Tensor | None) -> Tensor:
    """The frames' order in the step whose noise level is next to ``sigma``."""
    if sigmas is not None:
        sigma = min(sigmas.tolist(), key=lambda level: abs(level - sigma))
    return torch.randperm(frames, generator=of_level(seed, sigma))


@dataclass(frozen=True, eq=False)
class Grid:
    """``side``: n, of frames in a grid's row and column."""

    side: int
    seed: int
    asked_by: str

    def around_run(self, executor: Any, noise: Any, *args: Any, **kwargs: Any) -> Tensor:
        """OUTER_SAMPLE: GridError before the model loads, where the run cannot be one of grids."""
        guider = executor.class_obj
        self._require_frames(noise)
        self._require_alone(guider)
        for conds in guider.conds.values():
            for cond in conds or ():
                self._require_whole(cond)
        return executor(noise, *args, **kwargs)

    def around_conds(
        self, executor: Any, model: Any, conds: list[Conds | None], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        """CALC_COND_BATCH: the predictions of ``conds``, made of grids."""
        if len(x) % self.side**2:
            raise GridError(
                f"{self.asked_by}: expected the whole clip at each model call, got {len(x)} of its frames, which do "
                f"not fill grids of {self.side} × {self.side}: training takes parts of a clip. Train the model from "
                "before this node."
            )
        sigmas = options["transformer_options"].get("sample_sigmas")
        order = order_of(len(x), self.seed, float(timestep[0]), sigmas)
        controls = _TiledControls(order, self.side, x)
        shown = [each and [self._shown(cond, x, order, controls) for cond in each] for each in conds]
        grids = tiled(x, order, self.side)
        outputs = executor(model, shown, grids, timestep[: len(grids)], options)
        return [cut(output, order, self.side) for output in outputs]

    def _shown(self, cond: dict[str, Any], x: Tensor, order: Tensor, controls: _TiledControls) -> dict[str, Any]:
        """A conditioning of frames as one of grids."""
        shown = {**cond, "model_conds": dict(cond["model_conds"])}
        for name, value in cond["model_conds"].items():
            tensor = getattr(value, "cond", None)
            if isinstance(tensor, Tensor) and tensor.ndim == x.ndim and tensor.shape[2:] == x.shape[2:]:
                shown["model_conds"][name] = value._copy_with(tiled(_by_frame(tensor, len(x)), order, self.side))
            elif isinstance(tensor, Tensor) and tensor.ndim > 1 and len(tensor) > 1:
                shown["model_conds"][name] = value._copy_with(self._common(name, tensor))
            elif isinstance(tensor, list):
                of_frames = [each for each in tensor if isinstance(each, Tensor) and len(each) > 1]
                for each in of_frames:
                    self._common(name, each)
        if "mask" in cond:
            shown["mask"] = tiled(_by_frame(cond["mask"], len(x)), order, self.side)
            shown.pop("area", None)  # the mask's bounds in the frame, which are no place in a grid
        if cond.get("control") is not None:
            shown["control"] = controls.of(cond["control"])
        return shown

    def _common(self, name: str, tensor: Tensor) -> Tensor:
        """What all rows have in common. GridError where they differ: a grid is drawn with one."""
        if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
            raise GridError(
                f"{self.asked_by}: the conditioning has {len(tensor)} different rows of {name}, one for each frame, "
                "but the frames of a grid share one. Use one prompt and one reference for the whole clip."
            )
        return tensor[:1]

    def _require_frames(self, noise: Any) -> None:
        shape = None if noise.is_nested else tuple(noise.shape)
        if shape is None or not (len(shape) == 4 or (len(shape) == 5 and shape[2] == 1)):
            said = "holds sound, too" if shape is None else f"has shape {shape}"
            raise GridError(
                f"{self.asked_by}: the latent {said}, expected pictures, whose batch is the clip. Use an image model "
                "(SD1.5, SDXL, Flux ...); video models join their frames themselves."
            )
        cells = self.side**2
        if shape[0] % cells:
            below, above = shape[0] // cells * cells, (shape[0] // cells + 1) * cells
            raise GridError(
                f"{self.asked_by}: {shape[0]} frames do not fill grids of {self.side} × {self.side}, expected a "
                f"multiple of {cells}. Use {f'{below} or ' if below else ''}{above} frames, or another grid."
            )

    def _require_alone(self, guider: Any) -> None:
        options = guider.model_options
        across = (Stage.OUTPUT, Stage.KEYS, Stage.FURTHER_KEYS, Stage.MERGE)
        techniques = options["transformer_options"].get(TECHNIQUES, ())
        if names := [each.asked_by for each in techniques if each.technique.stage in across]:
            raise GridError(
                f"{self.asked_by}: {names[0]} lets frames act on each other in their order, but a grid shuffles "
                "them and joins them itself. Remove one of the two nodes."
            )
        if "context_handler" in options:
            raise GridError(
                f"{self.asked_by}: context windows give the model a part of the frames at a time, but grids are made "
                "of all. Remove one of the two nodes."
            )
        try:
            temporal = any(site.kind == "temporal" for site in sites_of(guider.model_patcher))
        except UnknownModelError:  # grids need to know nothing of the network
            temporal = False
        if temporal:
            raise GridError(
                f"{self.asked_by}: the model has temporal layers, which join the frames of a batch, expected an image "
                "model without a motion module. Remove the motion module, or this node."
            )

    def _require_whole(self, cond: dict[str, Any]) -> None:
        for name, said in {"area": "an area of the frame", "gligen": "boxes in the frame (GLIGEN)"}.items():
            if name in cond:
                raise GridError(
                    f"{self.asked_by}: a prompt is for {said}, which a grid of frames has in every cell. Use a mask "
                    "(ConditioningSetMask) in its place, or a prompt for the whole frame."
                )


class _TiledControls(SeenControls):
    """The ControlNets of one call, whose images go along into the grids."""

    def __init__(self, order: Tensor, side: int, x: Tensor) -> None:
        self._made: dict[int, _TiledControl] = {}
        self._where = order, side, x

    def of(self, control: Any) -> SeenControl:
        return self._made.setdefault(id(control), _TiledControl(control, *self._where))


class _TiledControl(SeenControl):
    """A ControlNet, with those before it, whose images are grids for the length of a call."""

    def __init__(self, control: Any, order: Tensor, side: int, x: Tensor) -> None:
        vars(self).update(_control=control, _order=order, _side=side, _x=x)

    def get_instance_for_device(self, device: Any) -> SeenControl:
        own = vars(self)
        return _TiledControl(self._control.get_instance_for_device(device), own["_order"], own["_side"], own["_x"])

    def get_control(self, x: Tensor, t: Tensor, cond: dict, branches: int, options: dict[str, Any]) -> Any:
        chain, each = [], self._control
        while each is not None:
            chain.append((each, each.cond_hint_original, each.extra_concat_orig))
            each = each.previous_controlnet
        try:
            for each, image, further in chain:
                if image is not None:
                    each.cond_hint_original = self._grids(each, image)
                each.extra_concat_orig = [self._grids(each, picture) for picture in further]
                each.cond_hint = None
            return self._control.get_control(x, t, cond, branches, options)
        finally:
            for each, image, further in chain:
                each.cond_hint_original, each.extra_concat_orig, each.cond_hint = image, further, None

    def _grids(self, control: Any, images: Tensor) -> Tensor:
        """Control images (B, C, H, W) of the frames as grids of exactly the size that the network takes."""
        own = vars(self)
        frames = own["_x"]
        ratio = control.compression_ratio * (1 if control.vae is None else control.vae.spacial_compression_encode())
        height, width = (size * ratio for size in frames.shape[-2:])
        fitting = common_upscale(images, width, height, control.upscale_algorithm, "center")
        return tiled(_by_frame(fitting, len(frames)), own["_order"], own["_side"])


def _by_frame(rows: Tensor, frames: int) -> Tensor:
    """A row for each frame, repeated as ComfyUI does."""
    return rows[[frame % len(rows) for frame in range(frames)]]


def in_grids(model: ModelPatcher, side: int, seed: int, asked_by: str) -> ModelPatcher:
    """A clone of ``model`` that draws frames in grids of ``side`` × ``side``; 1 is the plain model."""
    clone = model.clone()
    if side > 1:
        wrappers: dict[str, list[Callable]] = clone.wrappers.get(WrappersMP.CALC_COND_BATCH, {})
        if _WRAPPER in wrappers:
            raise GridError(f"{asked_by}: the model draws grids of frames already, expected one such node. Remove one.")
        grid = Grid(side, seed, asked_by)
        around: dict[str, Callable] = {
            WrappersMP.OUTER_SAMPLE: grid.around_run,
            WrappersMP.CALC_COND_BATCH: grid.around_conds,
        }
        put_wrappers(clone, _WRAPPER, around)
    return clone


_WRAPPER = "coherence.rave"
