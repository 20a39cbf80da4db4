"""Small random models under the names of the well-known ones that workflows load: same class, same kind of file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import adapters, unets

IP2P = "checkpoints/instruct-pix2pix-00-22000.safetensors"
STAND_INS: dict[str, Callable[[Path], None]] = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": partial(unets.write_as_safetensors, config=unets.SD15, seed=15),
    "checkpoints/dreamshaper_8.safetensors": partial(unets.write_as_safetensors, config=unets.SD15, seed=17),
    IP2P: partial(unets.write_as_safetensors, config=unets.IP2P, seed=16),
    "controlnet/control_v11p_sd15_canny_fp16.safetensors": adapters.write_controlnet,
    "loras/blindbox_V1Mix.safetensors": adapters.write_lora,
}
"""kind/file → what writes it."""
