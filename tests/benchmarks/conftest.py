"""Benchmarks set options of ComfyUI and threads of PyTorch for their whole process, which tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _options_of_comfyui():
    from comfy.cli_args import args

    before, threads = dict(vars(args)), torch.get_num_threads()
    yield
    vars(args).update(before)
    torch.set_num_threads(threads)
