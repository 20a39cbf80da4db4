"""The table of families: which file, which loader, which latents and which conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import dits, unets

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Conditioning = list[list[Any]]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Args:
        file: name of the weight file.
        kind: ComfyUI's name of the model folder, which also chooses the loader.
        write: writes the file.
        base: name of the class in ``comfy.model_base`` that the loader must find.
        latent_shape: the least latents worth sampling: (F, C, H, W) for UNets, (B, C, F, H, W) for DiTs.
        frames_axis: the axis of F in ``latent_shape``.
        context: tokens and width of the text conditioning.
        extras: shapes of further tensors of the conditioning, batch of one, by ComfyUI's name.
        settings: further fixed values of the conditioning.
    """

    file: str
    kind: str
    write: Callable[[Path], None]
    base: str
    latent_shape: tuple[int, ...]
    frames_axis: int
    context: tuple[int, int]
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def latent(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """A LATENT of unit normal values."""
        generator = torch.Generator().manual_seed(seed)
        return {"samples": torch.randn(self.latent_shape, generator=generator)}

    def conditioning(self, seed: int = 1) -> tuple[Conditioning, Conditioning]:
        """Positive and negative CONDITIONING: unit normal text, different in both; the extras are shared."""
        generator = torch.Generator().manual_seed(seed)
        extras = {name: torch.randn(shape, generator=generator) for name, shape in self.extras.items()}
        texts = torch.randn(2, 1, *self.context, generator=generator)
        positive, negative = ([[text, {**extras, **self.settings}]] for text in texts)
        return positive, negative


FAMILIES: dict[str, Family] = {
    "sd15": Family(
        file="tiny_sd15.ckpt",
        kind="checkpoints",
        write=unets.write_sd15,
        base="BaseModel",
        latent_shape=(3, 4, 16, 16),
        frames_axis=0,
        context=(77, 768),
    ),
    "sdxl": Family(
        file="tiny_sdxl.safetensors",
        kind="checkpoints",
        write=unets.write_sdxl,
        base="SDXL",
        latent_shape=(3, 4, 16, 16),
        frames_axis=0,
        context=(77, 2048),
        extras={"pooled_output": (1, 1280)},
    ),
    "wan21": Family(
        file="tiny_wan21.safetensors",
        kind="diffusion_models",
        write=dits.write_wan21,
        base="WAN21",
        latent_shape=(1, 16, 3, 16, 16),
        frames_axis=2,
        context=(20, 4096),
    ),
    "wan22": Family(
        file="tiny_wan22.safetensors",
        kind="diffusion_models",
        write=dits.write_wan22,
        base="WAN22",
        latent_shape=(1, 48, 3, 16, 16),
        frames_axis=2,
        context=(20, 4096),
    ),
    "cogvideox": Family(
        file="tiny_cogvideox.safetensors",
        kind="diffusion_models",
        write=dits.write_cogvideox,
        base="CogVideoX",
        latent_shape=(1, 16, 3, 16, 16),
        frames_axis=2,
        context=(20, 4096),
    ),
    "ltxv": Family(
        file="tiny_ltxv.safetensors",
        kind="diffusion_models",
        write=dits.write_ltxv,
        base="LTXV",
        latent_shape=(1, 128, 3, 8, 8),
        frames_axis=2,
        context=(20, 4096),
        settings={"attention_mask": torch.ones(1, 20, dtype=torch.long)},
    ),
    "hunyuan_video": Family(
        file="tiny_hunyuan_video.safetensors",
        kind="diffusion_models",
        write=dits.write_hunyuan_video,
        base="HunyuanVideo",
        latent_shape=(1, 16, 3, 16, 16),
        frames_axis=2,
        context=(20, 4096),
        extras={"pooled_output": (1, 768)},
    ),
}


@dataclass(frozen=True)
class TinyModels:
    """A models folder, laid out as ComfyUI's own, that fills as families are asked for."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of family ``name``, written on first use."""
        family = FAMILIES[name]
        path = self.folder / family.kind / family.file
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            family.write(path)
        return path

    @cached_property
    def _nodes(self) -> Any:
        """ComfyUI's node classes, with this folder first among its model folders."""
        import folder_paths

        import nodes

        for kind in {family.kind for family in FAMILIES.values()}:
            folder_paths.add_model_folder_path(kind, str(self.folder / kind), is_default=True)
        return nodes

    def load(self, name: str) -> ModelPatcher:
        """The diffusion model of family ``name`` through its stock loader."""
        if FAMILIES[name].kind == "checkpoints":
            return self.load_checkpoint(name)[0]
        return self._nodes.UNETLoader().load_unet(self.path(name).name, "default")[0]

    def load_checkpoint(self, name: str) -> tuple[ModelPatcher, Any, Any]:
        """MODEL, CLIP (None where the checkpoint has none) and VAE of family ``name``."""
        return self._nodes.CheckpointLoaderSimple().load_checkpoint(self.path(name).name)


def sample(
    model: ModelPatcher,
    family: Family,
    *,
    steps: int = 2,
    cfg: float = 4.0,
    seed: int = 0,
    sampler: str = "euler",
    scheduler: str = "normal",
) -> torch.Tensor:
    """Denoised latents of ``family.latent_shape`` by the KSampler node's own path, from zero latents."""
    import comfy.sample

    empty = torch.zeros(family.latent_shape)
    noise = comfy.sample.prepare_noise(empty, seed)
    positive, negative = family.conditioning()
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            empty,
            disable_pbar=True,
            seed=seed,
        )
