"""What training leaves behind: checkpoints to go on from, fp16 weights to ship, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2]
STATE = FOLDER / ".training"  # ignored by git


class Trained:
    """A module, its optimizer and the moving average of its weights, saved and resumed as one.

    ``decay`` of the average rises to its limit, so that the first steps are forgotten.
    """

    def __init__(self, part: str, module: torch.nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.part, self.module, self.optimizer, self.decay = part, module, optimizer, decay
        self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self._checkpoint = STATE / f"{part}.pt"
        if self._checkpoint.is_file():
            saved = torch.load(self._checkpoint, weights_only=True)
            module.load_state_dict(saved["module"])
            optimizer.load_state_dict(saved["optimizer"])
            self.average, self.step, self.curve = saved["average"], saved["step"], saved["curve"]
            print(f"{part}: goes on at step {self.step}", flush=True)

    def descend(self, loss: Tensor, rate: float) -> None:
        """One step on ``loss``."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.update(rate)

    def update(self, rate: float) -> None:
        """One step of the optimizer, gradients clipped to norm 1, and of the average; the gradients are gone after."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.decay, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                self.average[name].lerp_(tensor, 1 - decay)
        self.step += 1

    def note(self, **figures: float) -> None:
        self.curve.append({"step": self.step, **figures})
        print(self.part, json.dumps(self.curve[-1]), flush=True)

    def save(self) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "average": self.average, "step": self.step, "curve": self.curve}, partial)
        partial.replace(self._checkpoint)


def ship(weights: Mapping[str, Tensor], part: str) -> None:
    """Writes the file the pack loads: fp16."""
    shipped = FOLDER / f"coherence_demo_{part}.safetensors"
    partial = shipped.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, partial)
    partial.replace(shipped)


def write_curve(part: str, curve: list[dict[str, float]]) -> None:
    (FOLDER / "curves").mkdir(exist_ok=True)
    (FOLDER / "curves" / f"{part}.json").write_text("[\n" + ",\n".join(map(json.dumps, curve)) + "\n]\n")
