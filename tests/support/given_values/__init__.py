"""For a test server's custom_nodes, never part of the pack: a value of any kind, right or wrong, and a look at one."""

import json
import math
from typing import Any

import torch
from comfy.clip_vision import Output
from comfy_api.latest import ComfyExtension, io

FILLS = {"nan": math.nan, "infinite": math.inf, "zeros": 0.0, "twos": 2.0}


def tensor(what: dict[str, Any]) -> torch.Tensor:
    """``values``; or ``shape`` full of ``fill``, and without one of noise, in which a single value may be NaN."""
    if "values" in what:
        return torch.tensor(what["values"])
    x = torch.rand(what["shape"], generator=torch.Generator().manual_seed(0))
    if what.get("fill") == "one nan":
        x.view(-1)[:1] = math.nan
    elif "fill" in what:
        x = torch.full_like(x, FILLS[what["fill"]])
    return x.to(getattr(torch, what.get("dtype", "float32")))


def value(what: dict[str, Any]) -> Any:
    kind = what["kind"]
    if kind == "LATENT":
        latent = {} if what.get("empty") else {"samples": tensor(what)}
        latent |= {"noise_mask": tensor({"shape": what["mask"]})} if "mask" in what else {}
        return latent | ({"batch_index": what["batch_index"]} if "batch_index" in what else {})
    if kind == "CONDITIONING":
        return [[tensor({**what, "shape": shape}), {}] for shape in what["shapes"]]
    if kind == "CLIP_VISION_OUTPUT":
        output = Output()
        output["last_hidden_state"] = tensor(what)
        return output
    if kind in ("IMAGE", "MASK", "SIGMAS"):
        return tensor(what)
    return {"text": "not what you asked for", "nothing": None, "number": 7}[kind]


class GivenValue(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GivenValue",
            category="tests",
            inputs=[io.String.Input("what")],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def execute(cls, what: str) -> io.NodeOutput:
        return io.NodeOutput(value(json.loads(what)))


def tensors(x: Any) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else []
    return [each for part in parts for each in tensors(part)]


class LookAt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LookAt",
            category="tests",
            inputs=[io.AnyType.Input("value")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, value: Any) -> io.NodeOutput:
        found = tensors(value)
        told = [[list(x.shape), bool(x.numel()) and bool(x.isfinite().all())] for x in found if x.is_floating_point()]
        return io.NodeOutput(ui={"tensors": told})


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [GivenValue, LookAt]


async def comfy_entrypoint() -> Extension:
    return Extension()
