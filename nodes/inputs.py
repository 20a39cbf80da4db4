"""What the schemas of several nodes share: categories, the pack's own types, and inputs.

:mod:`.checks` holds what comes in to what its type promises.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.registry import CHOICES, ORDERS
from ..frames.schedule import parse_schedule, schedule_text
from .checks import InputError

NOISE = "coherence/noise"
ATTENTION = "coherence/attention"
EDITING = "coherence/editing"
INVERSION = "coherence/inversion"
TUNING = "coherence/tuning"

Registry = io.Custom("ATTENTION_REGISTRY")
Weights = io.Custom("STAM_WEIGHTS")
Adapter = io.Custom("GE_ADAPTER")
MomentumType = io.Custom("MOMENTUM")
TrajectoryType = io.Custom("TRAJECTORY")
PromptAlignment = io.Custom("PROMPT_ALIGNMENT")
Floats = io.Custom("FLOATS")
"""A list of numbers, as core's and other packs' keyframe nodes take; many others call the same FLOAT."""


def seed_input(tooltip: str, name: str = "seed", **options: Any) -> io.Int.Input:
    """Any whole number of 64 bits."""
    return io.Int.Input(name, default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip=tooltip, **options)


def noise_seed_input() -> io.Int.Input:
    return seed_input(
        "The same seed gives the same noise on every machine. The first frame equals RandomNoise's for this seed. "
        "Change it for another clip.",
        "noise_seed",
        control_after_generate=True,
    )


def cfg_input(default: float, tooltip: str, name: str = "cfg", optional: bool = False) -> io.Float.Input:
    """The strength of classifier-free guidance, with ComfyUI's range and steps."""
    limits: dict[str, Any] = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
    return io.Float.Input(name, default=default, optional=optional, tooltip=tooltip, **limits)


def schedule_input(name: str, placeholder: str, tooltip: str, advanced: bool = False) -> io.MultiType.Input:
    """A text field that takes links of STRING, FLOAT and FLOATS; :func:`schedule_of` reads them all."""
    text = io.String.Input(name, default="", placeholder=placeholder)
    return io.MultiType.Input(text, [Floats, io.Float], tooltip=tooltip, advanced=advanced or None)


def schedule_of(name: str, value: Any, low: float, high: float) -> str:
    """What came in at the input ``name`` as frame:value pairs. InputError where it is no schedule, so that a slip in it
    shows at its node, not at the sampler."""
    try:
        text = schedule_text(value)
        parse_schedule(text, low, high)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from None
    return text


def layers_input(of_transformers: bool = True) -> io.String.Input:
    """``of_transformers``: the node takes models such as Flux, too."""
    transformers = ", 'double_blocks.0-9' of Flux or 'transformer_blocks.0-9' of Qwen-Image" * of_transformers
    return io.String.Input(
        "layers",
        default="*",
        tooltip="The attention layers to act on. '*' means all; otherwise names separated by commas: 'middle', "
        f"'input.4', 'output.3-8' of a UNet{transformers}. "
        "Choose fewer if the effect is too strong: in a UNet 'output' leaves composition free, 'input, middle' leaves "
        "detail free.",
    )


def frames_per_batch_input(more: str) -> io.Int.Input:
    return io.Int.Input(
        "frames_per_batch",
        default=0,
        min=0,
        max=4096,
        optional=True,
        tooltip=f"How many frames go through the model at a time. 0: the whole clip. {more} Set it if memory runs out.",
    )


def pool_input(optional: bool = False) -> io.Int.Input:
    return io.Int.Input(
        "pool",
        default=2,
        min=1,
        max=16,
        optional=optional,
        advanced=optional,
        tooltip="Size of the coarse patches in fine_coarse, 1 to 16 tokens wide and high. 1 is full attention among"
        " all frames. Raise it for long clips or large pictures; memory falls with its square.",
    )


def percent_inputs(optional: bool = False) -> list[io.Float.Input]:
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=optional,
            advanced=True,
            tooltip="When it starts: 0 is the first sampling step (pure noise), 1 the last. Raise it to leave "
            "out the first steps, which lay out the picture.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=optional,
            advanced=True,
            tooltip="When it stops: 0 is the first sampling step, 1 the last. Lower it to leave out the last steps, "
            "which draw details.",
        ),
    ]


def adapter_input() -> Any:
    return Adapter.Input("adapter", tooltip="A GE-Adapter, from GEAdapterTrain or LoadGEAdapter.")


def refine_input() -> io.Int.Input:
    return io.Int.Input(
        "refine_iterations",
        default=0,
        min=0,
        max=10,
        tooltip="Number of corrections per step, 0 to 10, so that sampling retraces the inversion. Each costs one "
        "more model call per step. Use 2 or 3 with fewer than 50 steps.",
    )


def precision_input(what: str) -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=["auto", "fp32", "bf16"],
        default="auto",
        tooltip=f"{what}. auto: bf16 on GPUs that support it, otherwise fp32. Use fp32 if the loss becomes NaN.",
    )


def start_inputs() -> list[io.Input]:
    """What a measuring run starts from, as the sampler gets it."""
    return [
        io.Model.Input("model", tooltip="The model to measure. It is not changed."),
        io.Conditioning.Input(
            "conditioning",
            tooltip="The prompt to measure with, usually the positive one. It is used alone, without a negative "
            "prompt or cfg.",
        ),
        io.Noise.Input(
            "noise", tooltip="The noise that goes into the sampler, so that exactly its steps are measured."
        ),
        io.Sigmas.Input(
            "sigmas", tooltip="The noise levels that go into the sampler, from a scheduler node. Step 0 is the first."
        ),
        io.Latent.Input(
            "latent_image",
            tooltip="The latent that goes into the sampler. It sets frame count and size. Larger ones cost more.",
        ),
    ]


def ranking_inputs() -> list[io.Input]:
    return [
        kind_input("Which layers may be selected."),
        io.Combo.Input(
            "select",
            options=list(ORDERS),
            default="highest",
            tooltip="highest: the most even maps, for perturbation guidance. lowest: the most structured maps, for "
            "editing.",
        ),
        *amount_inputs(
            "Number of layers to select, from 1 to all of them. 1 is the paper's choice for guidance. 0: use percent "
            "instead.",
            "Share of the layers to select if count is 0: 0 to 100, rounded down, at least one layer. 50 is the "
            "paper's choice for editing; more keeps more of the source.",
        ),
    ]


def kind_input(question: str) -> io.Combo.Input:
    return io.Combo.Input(
        "kind",
        options=list(CHOICES),
        default="all",
        tooltip=f"{question} spatial: within a picture. temporal: across frames. joint: all tokens at once (most "
        "transformers). all: any of these, but never cross-attention.",
    )


def amount_inputs(count: str, percent: str, optional: bool = False) -> list[io.Input]:
    """How many layers a ranking selects; ``count``, ``percent``: their tooltips."""
    return [
        io.Int.Input("count", default=1, min=0, max=4096, optional=optional, tooltip=count),
        io.Float.Input("percent", default=50.0, min=0.0, max=100.0, step=1.0, optional=optional, tooltip=percent),
    ]


def registry_input() -> io.Input:
    return Registry.Input("registry", tooltip="Layers with their measurements, from EntropyRegister or a saved file.")


def perturbed_layers_input() -> io.Input:
    """The registry of a node that acts on the layers it selects."""
    return Registry.Input(
        "registry",
        tooltip="The layers to change: those that the registry selects. From EntropyRegister (measured), "
        "SelectAttentionLayers (named) or LoadAttentionRegistry. ReselectAttentionLayers chooses others "
        "from the same measurements.",
    )
