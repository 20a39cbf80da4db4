"""Random prompts for a soak: workflows that ship, small, with random inputs that are valid, or with one that is not."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from random import Random
from typing import Any

Prompt = dict[str, Any]

FRAMES, SIZES = (3, 6), (64, 72, 96, 128)
INTEGERS = {
    "steps": (2, 5),
    "random_candidates": (1, 12),
    "line_iterations": (1, 20),
    "frames_per_batch": (0, 6),
    "pool": (1, 4),
    "count": (0, 6),
    "step": (0, 1),
    "refine_iterations": (0, 2),
    "batch_frames": (0, 4),
    "rank": (1, 8),
    "shared_tokens": (0, 8),
    "warmup_steps": (0, 4),
    "gradient_accumulation": (1, 2),
    "kernel_size": (1, 9),
}
"""Name → smallest and largest: the ranges of the nodes go far beyond what a soak has the time for."""
CHOICES = {
    "frames": range(FRAMES[0], FRAMES[1] + 1),
    "size": SIZES,
    "layers": ("*", "middle", "output.0-1", "middle, output.0"),
    "layer": ("middle", "output.0.attn1"),
    "measure_steps": ("0", "1", "0, 1"),
    "mu_schedule": ("", "0:0.9, 2:0.98", "1:0.5"),
    "kl_schedule": ("", "0:0.01, 2:0.3", "1:0.1, 3:0.1"),
    "text": ("a red circle on a white background", "a blue star on a yellow background", "a cat", ""),
    "sampler_name": ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "lcm", "uni_pc"),
}
OF_ONE_CLIP = {"frames": "frames", "batch_size": "frames", "frames_per_clip": "frames"} | dict.fromkeys(
    ("size", "width", "height"), "size"
)
"""Inputs that the nodes of a prompt must agree on → what they are an input of."""
OF_CORE = {*OF_ONE_CLIP, "seed", "noise_seed", "steps", "cfg", "denoise", "scheduler", "sampler_name", "text"}
"""Inputs of ComfyUI's own nodes that are drawn, too."""
KEPT = {"captions", "filename_prefix", "kind"}
"""Inputs of ours that stay: one caption for each clip, the place of the files; and the model, which layers are named
after and which noise levels are chosen for."""
OF_THE_STEPS = {"steps", "measure_steps", "step"}
"""Always drawn: what workflows ship with is for more steps than a soak takes."""
ORDERED = (("start_percent", "end_percent"), ("t0", "t1"))
TEXTS_NO_NODE_TAKES = ("0:0.9, x=", "../../outside", "nowhere.7", "\x00", "∞", "9" * 400)


def is_ours(info: dict[str, Any]) -> bool:
    """Whether a node, as ``/object_info`` describes it, is the pack's."""
    return info["category"].startswith("coherence/")


@dataclass(frozen=True)
class Draws:
    """Random prompts of one workflow in API format."""

    workflow: Prompt
    object_info: dict[str, Any]

    def valid(self, random: Random, share: float = 0.6) -> Prompt:
        """The workflow, small, with this share of its inputs drawn anew, each within its range."""
        prompt = copy.deepcopy(self.workflow)
        clip = {name: random.choice(CHOICES[name]) for name in ("frames", "size")}
        for node in prompt.values():
            inputs, ours = node["inputs"], is_ours(self.object_info[node["class_type"]])
            for name, (kind, options) in self._own_inputs(node).items():
                if name in OF_ONE_CLIP:
                    inputs[name] = clip[OF_ONE_CLIP[name]]
                elif name in OF_THE_STEPS or (
                    random.random() < share and (ours or name in OF_CORE) and not _is_kept(name, inputs)
                ):
                    inputs[name] = _draw(random, name, kind, options, inputs[name])
            for low, high in ORDERED:
                if low in inputs and high in inputs:
                    inputs[low], inputs[high] = sorted((inputs[low], inputs[high]))
        return prompt

    def invalid(self, random: Random) -> tuple[Prompt, str]:
        """A valid prompt but for one input of one of our nodes; and what was done to it."""
        prompt = self.valid(random)
        ours = [key for key, node in prompt.items() if is_ours(self.object_info[node["class_type"]])]
        key = random.choice([key for key in ours if prompt[key]["inputs"]])
        node = prompt[key]
        name = random.choice(list(node["inputs"]))
        if isinstance(node["inputs"][name], list):
            change, value = self._wrong_link(random, prompt)
        else:
            kind, options = self._own_inputs(node)[name]
            change, value = _wrong_value(random, kind, options)
        if change == "missing":
            del node["inputs"][name]
        else:
            node["inputs"][name] = value
        return prompt, f"{node['class_type']}.{name}: {change}"

    def _own_inputs(self, node: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
        """Those of a node's inputs that hold a value: name → type and options."""
        described = self.object_info[node["class_type"]]["input"]
        specs = {**described.get("required", {}), **described.get("optional", {})}
        return {
            name: _kind(specs[name])
            for name, value in node["inputs"].items()
            if name in specs and not isinstance(value, list)
        }

    def _wrong_link(self, random: Random, prompt: Prompt) -> tuple[str, Any]:
        key = random.choice(list(prompt))
        outputs = len(self.object_info[prompt[key]["class_type"]]["output"])
        return random.choice(
            [
                ("missing", None),
                (f"output 0 of {prompt[key]['class_type']}", [key, 0]),
                ("an output that is not there", [key, outputs + 1]),
                ("a node that is not there", ["nowhere", 0]),
                ("a number in place of a link", 3),
            ]
        )


def _is_kept(name: str, inputs: dict[str, Any]) -> bool:
    """Whether an input of ours stays; cfg does where there is no negative prompt to go away from."""
    return name in KEPT or (name == "cfg" and "positive" in inputs and "negative" not in inputs)


def _kind(spec: list) -> tuple[str, dict[str, Any]]:
    """Type and options of an input; lists of choices came as the type itself once."""
    options = spec[1] if len(spec) > 1 else {}
    return ("COMBO", {"options": spec[0]} | options) if isinstance(spec[0], list) else (spec[0], options)


def _draw(random: Random, name: str, kind: str, options: dict[str, Any], present: Any) -> Any:
    if kind == "COMBO":
        offered = options["options"]
        return random.choice([choice for choice in CHOICES.get(name, ()) if choice in offered] or offered)
    if name in CHOICES:
        return random.choice(CHOICES[name])
    if kind == "BOOLEAN":
        return random.random() < 0.5
    if kind == "INT":
        low, high = INTEGERS.get(name, (options["min"], min(options["max"], 2**53)))
        return random.randrange(low, high + 1, options.get("step") or 1)
    if kind == "FLOAT":
        return round(random.uniform(0.5, 1.0), 2) if name == "denoise" else _draw_float(random, options)
    return present


def _draw_float(random: Random, options: dict[str, Any]) -> float:
    """Uniform where the range is short or goes below 0, else on a scale of logarithms near the default."""
    low, high, default = options["min"], options["max"], options["default"]
    if high - low <= 10:
        return round(random.uniform(low, high), 3) if high > 0.5 else default * 10 ** random.uniform(-1, 1)
    if low < 0:
        return round(random.uniform(-2 * abs(default), 2 * abs(default)), 1)
    return min(high, max(low, round(default * 4 ** random.uniform(-1, 1), 2)))


def _wrong_value(random: Random, kind: str, options: dict[str, Any]) -> tuple[str, Any]:
    ways: list[tuple[str, Any]] = [("missing", None), ("null", None), ("a list", [1, 2, 3]), ("an object", {"a": 1})]
    if kind in ("INT", "FLOAT"):
        ways += [(f"{options['min']} − 1", options["min"] - 1), (f"{options['max']} + 1", options["max"] + 1)]
        ways += [(str(value), value) for value in (math.nan, math.inf, -math.inf, 1e300)]
        ways += [("no number", "many"), ("an empty text", "")]
    elif kind == "COMBO":
        ways += [("no choice", "no such choice"), ("a number", 7)]
    elif kind == "BOOLEAN":
        ways += [("no truth value", "perhaps")]
    else:
        ways += [(repr(text[:20]), text) for text in TEXTS_NO_NODE_TAKES]
    return random.choice(ways)
