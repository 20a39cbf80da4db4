"""What a training leaves behind: a checkpoint to go on from, fp16 weights, its curve.

Checkpoints are large and live outside the repository; weights for a new machine to go on from are in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from ..world.model import WEIGHTS

STATE = Path(os.environ.get("COHERENCE_TRAINING", Path.home() / ".cache" / "comfyui-coherence" / "training"))


class Training:
    """A module, its optimizer and the moving average of its weights, saved and resumed as one.

    It goes on from its checkpoint or, on a new machine, from the weights in the repository with a new optimizer.
    ``fresh``: steps of this optimizer; ``seen``: pictures or clips.
    """

    def __init__(self, part: str, module: torch.nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.part, self.module, self.optimizer, self.decay = part, module, optimizer, decay
        self.step, self.fresh, self.seen = 0, 0, 0
        self.curve: list[dict[str, float]] = []
        self._checkpoint = STATE / f"{part}.pt"
        shipped, curve = WEIGHTS / f"{part}.safetensors", WEIGHTS / f"{part}.json"
        if self._checkpoint.is_file():
            saved = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
            module.load_state_dict(saved["module"])
            optimizer.load_state_dict(saved["optimizer"])
            self.step, self.fresh, self.seen, self.curve = (saved[k] for k in ("step", "fresh", "seen", "curve"))
            self.average = {name: saved["average"][name].to(t.device) for name, t in module.state_dict().items()}
        else:
            if shipped.is_file():
                module.load_state_dict(load_file(shipped))
                self.curve = json.loads(curve.read_text())
                if self.curve:  # a training beside another one logs none
                    self.step, self.seen = int(self.curve[-1]["step"]), int(self.curve[-1]["seen"])
            self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        if distributed.is_initialized():
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)
        print(f"{part}: goes on at step {self.step}, after {self.seen}", flush=True)

    def descend(self, loss: Tensor, rate: float, seen: int) -> None:
        """One step on ``loss``."""
        loss.backward()
        self.update(rate, seen)

    def update(self, rate: float, seen: int) -> None:
        """One step of the optimizer, gradients clipped to norm 1, and of the average; the gradients are gone after."""
        seen = together(self.module, seen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.decay, (self.fresh + 1) / (self.fresh + 10))
        with torch.no_grad():
            now = self.module.state_dict()
            torch._foreach_lerp_([self.average[name] for name in now], list(now.values()), 1 - decay)
        self.step, self.fresh, self.seen = self.step + 1, self.fresh + 1, self.seen + seen

    def note(self, **figures: float) -> None:
        self.curve.append({"step": self.step, "seen": self.seen, **figures})
        print(self.part, json.dumps(self.curve[-1]), flush=True)

    def save(self) -> None:
        if rank():
            return
        STATE.mkdir(parents=True, exist_ok=True)
        partial = self._checkpoint.with_suffix(".partial")
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average}
        counts = {"step": self.step, "fresh": self.fresh, "seen": self.seen, "curve": self.curve}
        torch.save({**state, **counts}, partial)
        partial.replace(self._checkpoint)
        write_weights(self.average, STATE / f"{self.part}.safetensors")
        write_curve(self.curve, STATE / f"{self.part}.json")


def together(module: torch.nn.Module, seen: int) -> int:
    """The gradients' means over all processes, in place; what they have seen in all."""
    if not distributed.is_initialized():
        return seen
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    count = torch.tensor(seen)
    distributed.all_reduce(count)
    return int(count)


def rank() -> int:
    """This process's number."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def write_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """In fp16."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({name: tensor.half().contiguous().cpu() for name, tensor in weights.items()}, partial)
    partial.replace(file)


def write_curve(curve: list[dict[str, float]], file: Path) -> None:
    file.write_text("[\n" + ",\n".join(map(json.dumps, curve)) + "\n]\n")


def trained_weights(part: str) -> dict[str, Tensor]:
    """The newest ones: those of the training on this machine, else the repository's."""
    newest = STATE / f"{part}.safetensors"
    return load_file(newest if newest.is_file() else WEIGHTS / newest.name)
