"""The table of families: which file, which loader, which latents and which conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from . import dits, pictures, unets

Conditioning = list[list[Any]]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Args:
        file: name of the weight file.
        kind: ComfyUI's name of the model folder, which also chooses the loader.
        write: writes the file.
        base: name of the class in ``comfy.model_base`` that the loader must make.
        config: name of the class in ``comfy.supported_models`` that it must recognise.
        latent_shape: the least latents worth sampling: (F, C, H, W) for UNets, (B, C, F, H, W) for DiTs.
        frames_axis: the axis of F in ``latent_shape``.
        context: tokens and width of the text conditioning.
        extras: shapes of further tensors of the conditioning, batch of one, by ComfyUI's name.
        settings: further fixed values of the conditioning.
        vision: tokens and width of the CLIP vision output in the conditioning.
        narrow: config of a model that is built as ``load`` gives it; its file is as wide as detection wants it.
        unet_config: of a model that is built from ComfyUI's classes, where the loaders' widths are fixed and large.
        sharp: names of the weights that make its attention sharp.
        padded_to: text and picture are padded to a multiple of so many tokens.
        sound_shape: of the sound's latents, which the model gets beside the video's.
    """

    file: str
    kind: str
    write: Callable[[Path], None]
    base: str
    config: str
    latent_shape: tuple[int, ...]
    frames_axis: int
    context: tuple[int, int]
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    vision: tuple[int, int] | None = None
    narrow: Mapping[str, Any] = field(default_factory=dict)
    unet_config: Mapping[str, Any] = field(default_factory=dict)
    sharp: str = ""
    padded_to: int = 1
    sound_shape: tuple[int, ...] = ()

    def zeros(self) -> Any:
        """Latents of zeros; a NestedTensor of a video and its sound."""
        video = torch.zeros(self.latent_shape)
        if not self.sound_shape:
            return video
        from comfy.nested_tensor import NestedTensor

        return NestedTensor((video, torch.zeros(self.sound_shape)))

    @property
    def text_tokens(self) -> int:
        """Of the prompt inside the model."""
        return ceil(self.context[0] / self.padded_to) * self.padded_to

    @property
    def padding(self) -> int:
        """Tokens that pad a picture of a picture transformer."""
        tokens = (self.latent_shape[-1] // 2) ** 2
        return ceil(tokens / self.padded_to) * self.padded_to - tokens

    def latent(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """A LATENT of unit normal values."""
        generator = torch.Generator().manual_seed(seed)
        return {"samples": torch.randn(self.latent_shape, generator=generator)}

    def conditioning(self, seed: int = 1) -> tuple[Conditioning, Conditioning]:
        """Positive and negative CONDITIONING: unit normal text, different in both; the extras are shared."""
        generator = torch.Generator().manual_seed(seed)
        extras = {name: torch.randn(shape, generator=generator) for name, shape in self.extras.items()}
        if self.vision:
            from comfy.clip_vision import Output

            extras["clip_vision_output"] = Output()
            extras["clip_vision_output"].penultimate_hidden_states = torch.randn(1, *self.vision, generator=generator)
        texts = torch.randn(2, 1, *self.context, generator=generator)
        positive, negative = ([[text, {**extras, **self.settings}]] for text in texts)
        return positive, negative


def built(
    config: str,
    unet_config: Mapping[str, Any],
    latent_shape: tuple[int, ...],
    width: int = 48,
    *,
    base: str = "",
    sharp: str = "",
    padded_to: int = 1,
    sound_shape: tuple[int, ...] = (),
    **conditioning: Any,
) -> Family:
    """A family that is built from ComfyUI's classes; tuples of its conditioning are shapes, other values are fixed."""
    shapes = {name: value for name, value in conditioning.items() if type(value) is tuple}
    return Family(
        file="",
        kind="built",
        write=_not_written,
        base=base,
        config=config,
        latent_shape=latent_shape,
        frames_axis=2 if latent_shape[0] == 1 else 0,
        context=(7, width),
        extras=shapes,
        settings={name: value for name, value in conditioning.items() if name not in shapes},
        unet_config=unet_config,
        sharp=sharp,
        padded_to=padded_to,
        sound_shape=sound_shape,
    )


def _not_written(_path: Path) -> None:
    raise ValueError("expected a family with a file, got one that is built from ComfyUI's classes")


_unet = partial(Family, kind="checkpoints", frames_axis=0)
_video_transformer = partial(Family, kind="diffusion_models", frames_axis=2, context=(20, 4096))
_PICTURES, _WITH_FRAME_AXIS = (4, 16, 8, 8), (4, 16, 1, 8, 8)
"""Four frames on the batch axis, as picture models have them; the latents of some have an axis for frames as well."""

FAMILIES: dict[str, Family] = {
    "sd15": _unet(
        file="tiny_sd15.ckpt",
        write=unets.write_sd15,
        narrow=unets.SD15,
        base="BaseModel",
        config="SD15",
        latent_shape=(3, 4, 8, 8),
        context=(20, 768),
    ),
    "sd20": _unet(
        file="tiny_sd20.safetensors",
        write=unets.write_sd20,
        narrow=unets.SD20,
        base="BaseModel",
        config="SD20",
        latent_shape=(3, 4, 8, 8),
        context=(20, 1024),
    ),
    "sdxl": _unet(
        file="tiny_sdxl.safetensors",
        write=unets.write_sdxl,
        narrow=unets.SDXL,
        base="SDXL",
        config="KOALA_700M",
        latent_shape=(3, 4, 8, 8),
        context=(20, 2048),
        extras={"pooled_output": (1, 1280)},
    ),
    "wan21": _video_transformer(
        file="tiny_wan21.safetensors",
        write=dits.write_wan21,
        base="WAN21",
        config="WAN21_T2V",
        latent_shape=(1, 16, 3, 16, 16),
    ),
    "wan21_i2v": _video_transformer(
        file="tiny_wan21_i2v.safetensors",
        write=dits.write_wan21_i2v,
        base="WAN21",
        config="WAN21_I2V",
        latent_shape=(1, 16, 3, 16, 16),
        extras={"concat_latent_image": (1, 16, 3, 16, 16)},
        vision=(10, 1280),
    ),
    "wan22": _video_transformer(
        file="tiny_wan22.safetensors",
        write=dits.write_wan22,
        base="WAN22",
        config="WAN22_T2V",
        latent_shape=(1, 48, 3, 16, 16),
    ),
    "cogvideox": _video_transformer(
        file="tiny_cogvideox.safetensors",
        write=dits.write_cogvideox,
        base="CogVideoX",
        config="CogVideoX_T2V",
        latent_shape=(1, 16, 3, 16, 16),
    ),
    "ltxv": _video_transformer(
        file="tiny_ltxv.safetensors",
        write=dits.write_ltxv,
        base="LTXV",
        config="LTXV",
        latent_shape=(1, 128, 3, 8, 8),
        settings={"attention_mask": torch.ones(1, 20, dtype=torch.long)},
    ),
    "hunyuan_video": _video_transformer(
        file="tiny_hunyuan_video.safetensors",
        write=dits.write_hunyuan_video,
        base="HunyuanVideo",
        config="HunyuanVideo",
        latent_shape=(1, 16, 3, 16, 16),
        extras={"pooled_output": (1, 768)},
    ),
    "svd": _unet(
        file="tiny_svd.safetensors",
        write=unets.write_svd,
        narrow=unets.SVD,
        base="SVD_img2vid",
        config="SVD_img2vid",
        latent_shape=(4, 4, 8, 8),
        context=(1, 1024),
        extras={"concat_latent_image": (1, 4, 8, 8)},
        settings={"motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0},
    ),
    "flux": built(
        "Flux", pictures.FLUX, _PICTURES, base="Flux", sharp=r".*(query|key)_norm\.weight", pooled_output=(1, 32)
    ),
    "sd3": built("SD3", pictures.SD3, _PICTURES, base="SD3", sharp=r".*attn2?\.ln_[qk]\.weight", pooled_output=(1, 32)),
    "qwen_image": built(
        "QwenImage", pictures.QWEN_IMAGE, _WITH_FRAME_AXIS, base="QwenImage", sharp=r".*norm_(added_)?[qk]\.weight"
    ),
    "z_image": built(
        "ZImage", pictures.Z_IMAGE, (4, 16, 12, 12), base="Lumina2", sharp=r".*\.[qk]_norm\.weight", padded_to=32
    ),
    "anima": built("Anima", pictures.ANIMA, _WITH_FRAME_AXIS, base="Anima", sharp=r".*self_attn\.[qk]_norm\.weight"),
    "krea2": built("Krea2", pictures.KREA2, _WITH_FRAME_AXIS, 120, base="Krea2", sharp=r".*[qk]norm\.scale"),
}
