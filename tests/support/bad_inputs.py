"""Prompts with one node under test: what every input of it gets, right and wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]
Prompt = dict[str, Node]
FRAMES, SIDE = 3, 8


def node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}


def given(kind: str, **what: Any) -> Node:
    return node("GivenValue", what=json.dumps({"kind": kind, **what}))


SOURCES: Prompt = {
    "demo": node("CoherenceDemoModel", kind="shapes"),
    "flow": node("ModelSamplingSD3", model=["demo", 0], shift=3.0),
    "flow sigmas": node("BasicScheduler", model=["flow", 0], scheduler="simple", steps=3, denoise=1.0),
    "text": node("CLIPTextEncode", clip=["demo", 1], text="a red star"),
    "latent": given("LATENT", shape=[FRAMES, 4, SIDE, SIDE]),
    "noise": node("RandomNoise", noise_seed=1),
    "sigmas": node("BasicScheduler", model=["demo", 0], scheduler="simple", steps=3, denoise=1.0),
    "rising": node("FlipSigmas", sigmas=["sigmas", 0]),
    "sampler": node("KSamplerSelect", sampler_name="euler"),
    "guider": node("CFGGuider", model=["demo", 0], positive=["text", 0], negative=["text", 0], cfg=2.0),
    "layers": node("SelectAttentionLayers", model=["demo", 0], layers="middle"),
    "measured": node(
        "EntropyRegister",
        model=["demo", 0],
        conditioning=["text", 0],
        noise=["noise", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
        kind="all",
        select="highest",
        count=1,
        percent=50.0,
        measure_steps="0",
        precision="exact",
    ),
    "chain": node("VideoNoisePrior", noise_seed=2, prior="progressive", alpha=0.5),
    "noise frames": node("NoiseFrames", noise=["noise", 0], latent_image=["latent", 0]),
    "noisy": node("AddNoise", model=["demo", 0], noise=["noise", 0], sigmas=["sigmas", 0], latent_image=["latent", 0]),
    "images": given("IMAGE", shape=[FRAMES, 64, 64, 3]),
    "mask": given("MASK", shape=[FRAMES, 64, 64]),
    "inflated": node(
        "STAMInflate",
        model=["demo", 0],
        position="before_cross",
        frame_attention="fine_coarse",
        pool=2,
        norm="spectral",
        strength=1.0,
        layers="middle",
    ),
    "tuned": node("LoadSTAM", file="(example) red_star.stam.safetensors"),
    "adapter": node("LoadGEAdapter", file="(example) three_clips.ge_adapter.safetensors"),
    "keeping": node(
        "TemporalMomentumAttention",
        model=["demo", 0],
        mu=0.9,
        mu_schedule="",
        layers="middle",
        start_percent=0.0,
        end_percent=1.0,
        keep=True,
    ),
    "kept run": node(
        "KSampler",
        model=["keeping", 0],
        positive=["text", 0],
        negative=["text", 0],
        latent_image=["latent", 0],
        seed=1,
        steps=1,
        cfg=2.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    ),
    "inverted": node(
        "BilateralDDIMInvert",
        model=["demo", 0],
        positive=["text", 0],
        cfg=1.0,
        latent_image=["latent", 0],
        sigmas=["sigmas", 0],
        mode="none",
        kernel_size=5,
        sigma_spatial=1.0,
        sigma_intensity=1.0,
        filter_until=0.5,
        restandardise=True,
        refine_iterations=0,
        seed=0,
    ),
    "momentum": node("MomentumOfRun", model=["keeping", 0], latent=["kept run", 0]),
}
"""Where links come from."""
OF_TYPE = {
    "MODEL": ["demo", 0],
    "CLIP": ["demo", 1],
    "VAE": ["demo", 2],
    "CONDITIONING": ["text", 0],
    "LATENT": ["latent", 0],
    "NOISE": ["noise", 0],
    "SIGMAS": ["sigmas", 0],
    "SAMPLER": ["sampler", 0],
    "ATTENTION_REGISTRY": ["layers", 0],
    "IMAGE": ["images", 0],
    "MASK": ["mask", 0],
    "STAM_WEIGHTS": ["tuned", 0],
    "GE_ADAPTER": ["adapter", 0],
    "MOMENTUM": ["momentum", 0],
    "TRAJECTORY": ["inverted", 2],
}
SMALL: dict[str, dict[str, Any]] = {
    "DependencyNoise": {"previous": ["noise frames", 0]},
    "KeyframeNoise": {"noise": ["chain", 0], "keyframes": ["noise frames", 0], "frames": "2, 0, 1"},
    "NoiseFromLatent": {"latent": ["noisy", 0]},
    "TemporalMomentumAttention": {"previous": None},
    "MomentumOfRun": {"model": ["keeping", 0], "latent": ["kept run", 0]},
    "MotionFieldNoise": {"t0": 0.4, "t1": 0.7},
    "CoherenceDemoClip": {"frames": 2, "size": 64},
    "ReselectAttentionLayers": {"registry": ["measured", 0]},
    "BilateralDDIMInvert": {"cfg": 1.0, "negative": None},
    "OneShotTune": {"model": ["inflated", 0], "steps": 1, "precision": "fp32"},
    "GEAdapterTrain": {
        "frames_per_clip": FRAMES,
        "captions": "a star",
        "rank": 1,
        "shared_tokens": 1,
        "steps": 1,
        "warmup_steps": 0,
        "gradient_accumulation": 1,
        "adapter": None,
        "clip_vision_output": None,
        "control_images": None,
    },
    "NullTextInvert": {"inner_steps": 1, "precision": "fp32"},
    "WordMaps": {"words": "star"},
    "FlowEdit": {"model": ["flow", 0], "sigmas": ["flow sigmas", 0], "skip_steps": 0, "registry": ["layers", 0]},
    "LayerSweep": {"layers": "middle"},
    "RAVEGrid": {"grid": 1},
    "STAMInflate": {"weights": None, "layers": "middle"},
    "TuneAVideoInflate": {"weights": None, "layers": "middle"},
    "GEAdapterTokens": {"clip_vision_output": None},
    "FrameReferences": {"latents": None},
    "EntropyGuidedEdit": {"alignment": None, "target_latent": None, "trajectory": None},  # of other runs: refused
}
"""Inputs that are not their types' usual ones; None leaves an optional one out."""
SEEN_BY = {
    "MODEL": ("KSampler", "model"),
    "NOISE": ("SamplerCustomAdvanced", "noise"),
    "SAMPLER": ("SamplerCustomAdvanced", "sampler"),
    "GUIDER": ("SamplerCustomAdvanced", "guider"),
}
"""What an output of a type is tried with; others are looked at themselves."""
FOR_EDITS = ("PlugAndPlay", "TokenFlow")
"""Nodes whose model takes from the source clip of an edit."""


EDIT: dict[str, Any] = {
    **{name: ["text", 0] for name in ("source", "target", "negative")},
    **{name: [name, 0] for name in ("noise", "sampler", "sigmas")},
    "registry": ["layers", 0],
    "latent_image": ["latent", 0],
    "cfg": 1.0,
    "source_cfg": 1.0,
    "replace": "map",
    "start_percent": 0.0,
    "end_percent": 1.0,
}


def inputs_of(info: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """A node's inputs as ``/object_info`` has them: name → type and options."""
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {})
        for part in ("required", "optional")
        for name, spec in info["input"].get(part, {}).items()
    }


def valid(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Inputs that a node takes."""
    inputs = {}
    for each, (kind, options) in inputs_of(info).items():
        if kind in OF_TYPE:
            inputs[each] = OF_TYPE[kind]
        elif "default" in options:
            inputs[each] = options["default"]
        elif kind == "COMBO":
            inputs[each] = options["options"][0] if options["options"] else ""
        elif "STRING" in kind:
            inputs[each] = ""
    inputs |= SMALL.get(name, {})
    return {each: value for each, value in inputs.items() if value is not None}


def prompt(name: str, inputs: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """The node with these inputs, a Node in place of a link being a source of its own; and whatever tries what comes
    out of it."""
    made: Prompt = {"test": node(name)}
    for each, value in inputs.items():
        is_node = isinstance(value, dict) and "class_type" in value
        if is_node:
            made[f"given_{each}"] = value
        made["test"]["inputs"][each] = [f"given_{each}", 0] if is_node else value
    for place, kind in enumerate(info["output"]):
        seen = ["test", place]
        if name in FOR_EDITS:
            made["edit"] = node("EntropyGuidedEdit", **EDIT, model=seen)
            seen = ["edit", 0]
        elif kind in SEEN_BY:
            class_type, socket = SEEN_BY[kind]
            made[f"sampled_{place}"] = _sampling(class_type, "rising" if kind == "SAMPLER" else "sigmas")
            made[f"sampled_{place}"]["inputs"][socket] = seen
            seen = [f"sampled_{place}", 0]
        made[f"look_{place}"] = node("LookAt", value=seen)
    return _with_sources(made)


def _sampling(class_type: str, sigmas: str) -> Node:
    if class_type == "KSampler":
        how = {"seed": 1, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        return node("KSampler", positive=["text", 0], negative=["text", 0], latent_image=["latent", 0], **how)
    links = {each: [each, 0] for each in ("noise", "guider", "sampler")}
    return node("SamplerCustomAdvanced", latent_image=["latent", 0], sigmas=[sigmas, 0], **links)


def _with_sources(made: Prompt) -> Prompt:
    """With all that is linked, whatever that needs, and nothing else."""
    open_ends = list(made.values())
    while open_ends:
        for value in open_ends.pop()["inputs"].values():
            if isinstance(value, list) and value and value[0] in SOURCES and value[0] not in made:
                made[value[0]] = SOURCES[value[0]]
                open_ends.append(made[value[0]])
    return made


LATENTS = {
    "no frames": {"shape": [0, 4, SIDE, SIDE]},
    "one frame": {"shape": [1, 4, SIDE, SIDE]},
    "an odd size": {"shape": [FRAMES, 4, 7, 9]},
    "a long line": {"shape": [FRAMES, 4, 1, 24]},
    "no height": {"shape": [FRAMES, 4, 0, SIDE]},
    "three channels": {"shape": [FRAMES, 3, SIDE, SIDE]},
    "sixteen channels": {"shape": [FRAMES, 16, SIDE, SIDE]},
    "a video's latent": {"shape": [1, 4, FRAMES, SIDE, SIDE]},
    "one picture without a batch": {"shape": [4, SIDE]},
    "NaN": {"shape": [FRAMES, 4, SIDE, SIDE], "fill": "nan"},
    "one NaN": {"shape": [FRAMES, 4, SIDE, SIDE], "fill": "one nan"},
    "infinity": {"shape": [FRAMES, 4, SIDE, SIDE], "fill": "infinite"},
    "whole numbers": {"shape": [FRAMES, 4, SIDE, SIDE], "dtype": "int64"},
    "half precision": {"shape": [FRAMES, 4, SIDE, SIDE], "dtype": "float16"},
    "double precision": {"shape": [FRAMES, 4, SIDE, SIDE], "dtype": "float64"},
    "no samples": {"empty": True},
    "a mask of another size": {"shape": [FRAMES, 4, SIDE, SIDE], "mask": [1, 1, 5, 3]},
    "a mask of too many frames": {"shape": [FRAMES, 4, SIDE, SIDE], "mask": [7, 1, 64, 64]},
    "a mask of no frames": {"shape": [FRAMES, 4, SIDE, SIDE], "mask": [0, 64, 64]},
    "too short a batch index": {"shape": [FRAMES, 4, SIDE, SIDE], "batch_index": [0]},
    "a batch index below 0": {"shape": [FRAMES, 4, SIDE, SIDE], "batch_index": [-1, 0, 1]},
    "a batch index that jumps": {"shape": [FRAMES, 4, SIDE, SIDE], "batch_index": [9, 4, 4]},
}
CONDITIONINGS = {
    "no prompt": {"shapes": []},
    "two prompts": {"shapes": [[1, 32, 128], [1, 32, 128]]},
    "no tokens": {"shapes": [[1, 0, 128]]},
    "another model's": {"shapes": [[1, 77, 768]]},
    "tokens without rows": {"shapes": [[32, 128]]},
    "three rows": {"shapes": [[3, 32, 128]]},
    "five rows": {"shapes": [[5, 32, 128]]},
    "NaN": {"shapes": [[1, 32, 128]], "fill": "nan"},
}
IMAGES = {
    "no frames": {"shape": [0, 64, 64, 3]},
    "one frame": {"shape": [1, 64, 64, 3]},
    "an odd size": {"shape": [FRAMES, 37, 51, 3]},
    "one pixel": {"shape": [FRAMES, 1, 1, 3]},
    "no width": {"shape": [FRAMES, 64, 0, 3]},
    "grey": {"shape": [FRAMES, 64, 64, 1]},
    "with alpha": {"shape": [FRAMES, 64, 64, 4]},
    "more frames": {"shape": [5, 64, 64, 3]},
    "one picture without a batch": {"shape": [64, 64, 3]},
    "one NaN": {"shape": [FRAMES, 64, 64, 3], "fill": "one nan"},
    "twice as bright": {"shape": [FRAMES, 64, 64, 3], "fill": "twos"},
}
MASKS = {
    "one for all frames": {"shape": [64, 64]},
    "an odd size": {"shape": [1, 13, 99]},
    "no frames": {"shape": [0, 64, 64]},
    "more frames": {"shape": [5, 64, 64]},
    "of four dimensions": {"shape": [FRAMES, 1, 64, 64]},
    "empty": {"shape": [FRAMES, 64, 64], "fill": "zeros"},
    "above 1": {"shape": [FRAMES, 64, 64], "fill": "twos"},
    "NaN": {"shape": [FRAMES, 64, 64], "fill": "nan"},
}
SIGMAS = {
    "none": {"values": []},
    "one": {"values": [1.0]},
    "rising": {"values": [0.0, 0.5, 1.0, 9.0]},
    "equal": {"values": [1.0, 1.0, 1.0]},
    "zeros": {"values": [0.0, 0.0]},
    "below 0": {"values": [1.0, -1.0]},
    "beyond the model's": {"values": [1e6, 1e3, 0.0]},
    "a table": {"values": [[1.0, 0.0]]},
    "NaN": {"values": [math.nan, 0.0]},
    "whole numbers": {"values": [14, 3, 0]},
}
VISIONS = {
    "of one frame": {"shape": [1, 5, 16]},
    "of all frames": {"shape": [FRAMES, 5, 16]},
    "of more frames": {"shape": [7, 5, 16]},
    "no tokens": {"shape": [FRAMES, 0, 16]},
    "no frames axis": {"shape": [5, 16]},
    "NaN": {"shape": [FRAMES, 5, 16], "fill": "nan"},
}
TENSORS = {
    "LATENT": LATENTS,
    "CONDITIONING": CONDITIONINGS,
    "IMAGE": IMAGES,
    "MASK": MASKS,
    "SIGMAS": SIGMAS,
    "CLIP_VISION_OUTPUT": VISIONS,
}
TEXTS = ("", " ", "nan", "0:nan", "0:0.5, x", "0:2", "-1:0.1", "../../outside", "nowhere.7", "\x00", "∞", "9" * 400)


def wrong(kind: str, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What an input of a type may get beside what it asks for: in words, and the value or the Node that gives it."""
    if kind in ("INT", "FLOAT"):
        low, high = options["min"], options["max"]
        ends = (low, high) if kind == "FLOAT" else ()  # the most that some count to takes days
        yield from ((f"{x}", x) for x in (math.nan, math.inf, -math.inf, 1e300, low - 1, high + 1, "many", *ends))
    elif kind == "COMBO":
        yield from (("no choice", "no such choice"), ("a number", 7), ("an empty text", ""))
        yield from ((repr(choice), choice) for choice in options["options"])
    elif kind == "BOOLEAN":
        yield from (("true", True), ("false", False))
    elif "STRING" in kind:
        yield from ((repr(text[:20]), text) for text in TEXTS)
    else:
        for words, what in TENSORS.get(kind, {}).items():
            yield words, given(kind, **what)
        yield from ((f"a value of another type: {each}", given(each)) for each in ("text", "number"))
        yield "nothing", given("nothing")
