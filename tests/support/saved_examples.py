"""A good file of every kind that nodes load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from coherence.attention.forms import Form, InflationWeights
from coherence.files import ge_adapter_file, momentum_file, registry_file, weights_file
from coherence.techniques.kept import Momentum, RunFacts
from coherence.training.ge_adapter import GEAdapter, Training
from register_runs import layer, registry


@dataclass(frozen=True)
class Loader:
    """A loader, its saver, its own error, and something to save."""

    module: Any
    error: type[Exception]
    example: Any

    def written(self, value: Any) -> bytes:
        with TemporaryDirectory() as folder:
            path = Path(folder, "file")
            self.module.save(value, path)
            return path.read_bytes()

    def read(self, content: bytes) -> Any:
        with TemporaryDirectory() as folder:
            path = Path(folder, "file")
            path.write_bytes(content)
            return self.module.load(path)

    def reads(self, content: bytes) -> bool:
        """Whether it is a file of this kind: then what is read can be saved, and read again."""
        value, reason = None, ""
        try:
            value = self.read(content)
        except self.error as error:
            reason = str(error)
        if value is None:
            assert reason.startswith("file cannot be loaded: ")
            assert len(reason) < 2000, "nobody reads that"
            return False
        again = self.written(value)
        assert self.written(self.read(again)) == again
        return True


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) / 7


PROJECTION = "lora_unet_down_blocks_0_attn1_to_q"


ADAPTER = GEAdapter(
    {
        f"{PROJECTION}.lora_down.weight": numbers(2, 3),
        f"{PROJECTION}.lora_up.weight": numbers(3, 2).half(),
        f"{PROJECTION}.alpha": torch.tensor(2.0),
    },
    numbers(2, 4),
    (numbers(4, 3), numbers(4)),
    Training("BaseModel", "down", 8, 3, {"learning_rate": 1e-4, "seed": 2**64 - 1, "caption": "größer"}),
)


STAM = InflationWeights(
    Form("stam", "before_cross", "fine_coarse"),
    "DemoConfig",
    {"middle.0.stam.query.weight": numbers(2, 2), "middle.0.attn1.weight": numbers(3).bfloat16()},
    steps=2,
    frames=4,
)


MOMENTUM = Momentum(
    RunFacts("DemoConfig (float32, weights 00000000)", (4, 16, 16), (2.0, 0.0), ("positive",), ("middle.0.attn1",)),
    7,
    {"middle.0.attn1/0.positive": (2.0,)},
    {f"middle.0.attn1/0.positive/0/{part}": numbers(3).half() for part in "kv"},
)


LOADERS = {
    "LoadMomentum": Loader(momentum_file, momentum_file.MomentumFileError, MOMENTUM),
    "LoadSTAM": Loader(weights_file, weights_file.WeightsFileError, STAM),
    "LoadGEAdapter": Loader(ge_adapter_file, ge_adapter_file.GEAdapterFileError, ADAPTER),
    "LoadAttentionRegistry": Loader(
        registry_file,
        registry_file.RegistryFileError,
        registry([layer(0, "spatial", 0.5), layer(1, "cross", 0.25)]),
    ),
}


GOOD = {name: loader.written(loader.example) for name, loader in LOADERS.items()}
