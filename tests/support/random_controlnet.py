"""A ControlNet with random weights."""

from __future__ import annotations

import comfy.ops
import torch
from coherence.demo.model import UNET_CONFIG
from comfy.cldm import cldm
from comfy.controlnet import ControlNet


def controlnet() -> ControlNet:
    """One for the demo model, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cldm.ControlNet(**UNET_CONFIG, hint_channels=3, operations=comfy.ops.manual_cast)
        for parameter in net.parameters():  # convolutions that begin at 0 would steer nothing
            torch.nn.init.normal_(parameter, std=0.05)
    return ControlNet(net, load_device=torch.device("cpu"))
