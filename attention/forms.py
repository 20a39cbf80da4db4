"""What an image model can be inflated with: EI²'s STAM and fine-coarse attention, or Tune-A-Video's layers.

A ``Form`` says which modules go where and how frames attend; ``InflationWeights`` are a form's tuned weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..techniques.cross_frame import CrossFrame
from ..techniques.fine_coarse import FineCoarse
from ..techniques.stam import STAM, Norm
from ..techniques.technique import Stage, Technique
from ..techniques.temporal import TemporalAttention
from .inflation import (
    QUERIES,
    Inflation,
    InflationError,
    Inserted,
    Position,
    TransformerLayer,
    base_of,
    computing_dtype,
    inflate,
    inflations_of,
    transformer_layers,
)
from .sites import network_of
from .tap import tap

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FrameAttention = Literal["fine_coarse", "sparse_causal", "first", "self"]
Module = Literal["stam", "temporal"]
NAMES = {"stam": "STAM (EI²)", "temporal": "temporal attention (Tune-A-Video)"}


@dataclass(frozen=True)
class Form:
    """``module``: STAM, or Tune-A-Video's temporal attention (``ordered``: it knows the frames' order);
    ``frame_attention``: what takes self-attention's place, ``pool`` its coarse patches' size; ``norm``: STAM's."""

    module: Module
    position: Position
    frame_attention: FrameAttention
    pool: int = 2
    norm: Norm = "spectral"
    ordered: bool = False

    def make(self, layer: TransformerLayer, **how: Any) -> STAM | TemporalAttention:
        """An empty module for ``layer``; ``how``: its operations, attention, dtype, device."""
        if self.module == "stam":
            return STAM(layer.width, layer.heads, **how)
        return TemporalAttention(layer.width, layer.heads, self.ordered, **how)

    def reset(self, module: Any, generator: torch.Generator) -> None:
        """The weights before tuning: ``module`` adds nothing."""
        if self.module == "stam":
            module.reset_parameters(self.norm, generator)
        else:
            module.reset_parameters(generator)

    def technique(self) -> Technique | None:
        """What attends in the place of self-attention; None where that stays."""
        if self.frame_attention == "self":
            return None
        if self.frame_attention == "fine_coarse":
            return FineCoarse(self.pool)
        return CrossFrame("first" if self.frame_attention == "first" else "first_and_previous", Stage.FURTHER_KEYS)


TUNE_A_VIDEO = Form("temporal", "after_feed_forward", "sparse_causal")


@dataclass(frozen=True)
class InflationWeights:
    """``tensors``: ``<place>.stam.…`` or ``<place>.temporal.…`` of the modules, and ``<place>.attn1.weight``,
    ``<place>.attn2.weight``, (width, width): what tuning added to W_q. ``base``: the class of the model that was tuned.
    ``steps``, ``frames``: how long, and on how long a clip."""

    form: Form
    base: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    steps: int
    frames: int

    @property
    def places(self) -> set[str]:
        return {name.rsplit(f".{self.form.module}.", 1)[0] for name in self.tensors if f".{self.form.module}." in name}

    def of(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix``, by the rest of their names."""
        return {name[len(prefix) + 1 :]: x for name, x in self.tensors.items() if name.startswith(f"{prefix}.")}


@dataclass(frozen=True)
class Record:
    """What an inflation was made of; tuning starts from it."""

    form: Form
    weights: InflationWeights | None
    layers: tuple[TransformerLayer, ...]


def inflated(
    model: ModelPatcher, form: Form, weights: InflationWeights | None, *, layers: str, strength: float, asked_by: str
) -> ModelPatcher:
    """A clone of ``model`` in ``form``, with ``weights`` or untuned, at the transformer layers that ``layers`` names.

    InflationError where model, form and weights do not go together; NoSuchSiteError and UnknownModelError as in
    :mod:`.sites`.
    """
    there = transformer_layers(model, layers)
    if weights is not None:
        _require_fit(form, weights, model, there)
    how = {"attention": optimized_attention, "operations": comfy.ops.manual_cast}
    modules = modules_for(form, there, weights, torch.Generator().manual_seed(0), weights is not None, how)
    modules.to(computing_dtype(model))
    technique = form.technique()
    if technique is not None:
        names = ",".join(f"{layer.place}.attn1" for layer in there)
        model, _ = tap(model, technique, layers=names, kinds=["spatial"], asked_by=asked_by)
    record = Record(form, weights, tuple(there))
    modules.requires_grad_(False)
    return inflate(model, Inflation(form.module, form.position, modules, strength, record, network_of(model)))


def modules_for(
    form: Form,
    layers: Iterable[TransformerLayer],
    weights: InflationWeights | None,
    generator: torch.Generator,
    with_queries: bool,
    how: Mapping[str, Any],
) -> Inserted:
    """The modules for ``layers`` with ``weights``, or as they are before tuning; ``with_queries``: and what is added
    to W_q. In fp32, as torch draws weights in nothing less. ``how``: their operations, attention."""
    modules: dict[str, nn.Module] = {}
    how = {**how, "dtype": torch.float32}
    linear = how.get("operations", nn).Linear
    for layer in layers:
        inserted = form.make(layer, **how)
        if weights is None:
            form.reset(inserted, generator)
        modules[f"{layer.place}.{form.module}"] = inserted
        for name in QUERIES if with_queries else ():
            if (query := layer.query(name)) is not None:
                added = linear(query.in_features, query.out_features, bias=False, dtype=how["dtype"])
                nn.init.zeros_(added.weight)
                modules[f"{layer.place}.{name}"] = added
    if weights is not None:
        for name, module in modules.items():
            module.load_state_dict(weights.of(name))
    return Inserted(modules)


def find_inflation(model: ModelPatcher) -> Record | None:
    """What ``model`` was inflated with last; None for a model that is not."""
    records = [each.record for each in inflations_of(model.model_options["transformer_options"])]
    return records[-1] if records else None


def expected_shapes(form: Form, layer: TransformerLayer) -> dict[str, tuple[int, ...]]:
    """The tensors that weights in ``form`` have for ``layer``, and their shapes."""
    with torch.device("meta"):
        module = form.make(layer)
    shapes = {f"{layer.place}.{form.module}.{name}": tuple(x.shape) for name, x in module.state_dict().items()}
    for name in QUERIES:
        if (query := layer.query(name)) is not None:
            shapes[f"{layer.place}.{name}.weight"] = (query.out_features, query.in_features)
    return shapes


def _require_fit(form: Form, weights: InflationWeights, model: ModelPatcher, layers: list[TransformerLayer]) -> None:
    tuned = weights.form
    if tuned.module != form.module:
        raise InflationError(
            f"weights: expected {NAMES[form.module]}, got {NAMES[tuned.module]}. Use "
            f"{'STAMInflate' if tuned.module == 'stam' else 'TuneAVideoInflate'} for them."
        )
    settings = ("position", "frame_attention", "norm", "ordered")
    for name in (*settings, "pool") if tuned.frame_attention == "fine_coarse" else settings:
        theirs, ours = getattr(tuned, name), getattr(form, name)
        if theirs != ours:
            is_asked = form.module == "stam" or name == "position"  # by the node
            cure = f"Set it to {theirs}, or tune anew." if is_asked else "Tune anew."
            raise InflationError(f"{name}: the weights were tuned with {theirs}, the node is set to {ours}. {cure}")
    for layer in layers:
        for name, shape in expected_shapes(form, layer).items():
            got = weights.tensors.get(name)
            if got is None or tuple(got.shape) != shape:
                other = weights.base != base_of(model)
                raise InflationError(
                    f"weights: {name} is {'missing' if got is None else tuple(got.shape)}, this model "
                    f"({base_of(model)}) expects {shape}. The weights were tuned on {weights.base}: use "
                    f"{'a model of that class' if other else 'the same model, because this one has different layers'}"
                    + (
                        f", or set layers to what was tuned ({', '.join(sorted(weights.places))})."
                        if got is None
                        else "."
                    )
                )
    if weights.base != base_of(model):
        raise InflationError(
            f"weights: they were tuned on {weights.base}, this model is {base_of(model)}. The shapes match, but the "
            f"models differ: use a model of class {weights.base}, or tune anew."
        )
