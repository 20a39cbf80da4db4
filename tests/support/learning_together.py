"""One of several processes that train a small module together: `torchrun learning_together.py COMFYUI FOLDER`."""

import sys
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))
from train import enter, part

INPUTS = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


def main(comfyui: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    enter(comfyui)
    state, optimizer = part("training.state"), part("training.optimizer")
    state.WEIGHTS = state.STATE = folder
    torch.manual_seed(distributed.get_rank())  # only the first one's weights count
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    training = state.Training("small", module, optimizer.Muon(module.named_parameters(), ends=r"^1\."), decay=0.9)
    for _ in range(3):
        loss = module(INPUTS[distributed.get_rank()]).square().mean()
        training.descend(loss, rate=0.01, seen=4 + distributed.get_rank())
    training.save()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
