"""A ControlNet and a LoRA that stock loaders attach to the SD1.5 model, and a text encoder by itself."""

from pathlib import Path

import torch

from .unets import NARROW, SD15, SHARP, identity_clip_l, unet
from .weights import draw, named_shapes, prefixed


def write_controlnet(path: Path, channels: int = NARROW) -> None:
    """A ControlNet of the SD1.5 model's shape, without the zero convolutions' zeros: it steers at once."""
    import comfy.ops
    from comfy.cldm.cldm import ControlNet
    from safetensors.torch import save_file

    shapes = named_shapes(
        lambda: ControlNet(
            image_size=32,
            in_channels=4,
            model_channels=channels,
            hint_channels=3,
            use_spatial_transformer=True,
            legacy=False,
            transformer_depth_middle=1,
            dtype=torch.float32,
            operations=comfy.ops.disable_weight_init,
            **SD15,
        )
    )
    save_file(draw(shapes, SHARP, seed=5, dtype=torch.float16), path)


def write_lora(path: Path, rank: int = 4, channels: int = NARROW) -> None:
    """A LoRA, in kohya's naming, on every attention projection of the SD1.5 model."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(6)
    weights = {}
    for name, weight in unet(SD15, 15, channels).items():
        if ".attn" not in name or weight.ndim != 2:
            continue
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        rows, columns = weight.shape
        weights[f"{key}.lora_up.weight"] = torch.randn(rows, rank, generator=generator)
        weights[f"{key}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) / columns**0.5
        weights[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(weights, path)


def write_text_encoder(path: Path) -> None:
    """The identity CLIP-L by itself: ``sd3`` of CLIPLoader pads its 768 channels to T5's 4096."""
    torch.save(prefixed("text_model.", identity_clip_l(seed=1)), path)


def write_text_encoder_as_safetensors(path: Path) -> None:
    """The same in fp8, 120 MB: safetensors writes all of it."""
    from safetensors.torch import save_file

    weights = prefixed("text_model.", identity_clip_l(seed=1))
    save_file({name: weight.to(torch.float8_e4m3fn).contiguous() for name, weight in weights.items()}, path)
