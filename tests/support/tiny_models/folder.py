"""The models folder of a test session, and the sampling that its tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import adapters, pictures, quantised, stand_ins, unets
from .families import FAMILIES, Conditioning, Family
from .relatives import RELATIVES

if TYPE_CHECKING:
    from comfy.controlnet import ControlNet
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

KINDS = ("checkpoints", "diffusion_models", "controlnet", "loras", "text_encoders", "vae")


@dataclass(frozen=True)
class TinyModels:
    """A models folder, laid out as ComfyUI's own, that fills as its files are asked for."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of family ``name``."""
        family = RELATIVES.get(name) or FAMILIES[name]
        return self._written(family.kind, family.file, family.write)

    def controlnet_path(self) -> Path:
        """A ControlNet for ``sd15``."""
        return self._written("controlnet", "tiny_controlnet.safetensors", adapters.write_controlnet)

    def lora_path(self) -> Path:
        """A LoRA for ``sd15``."""
        return self._written("loras", "tiny_lora.safetensors", adapters.write_lora)

    def text_encoder_path(self) -> Path:
        """A CLIP-L whose tokens are its embeddings."""
        return self._written("text_encoders", "tiny_clip_l.ckpt", adapters.write_text_encoder)

    def stand_in(self, name: str) -> Path:
        """A small model under the name of a known one, kind/file: one of ``stand_ins.STAND_INS``."""
        return self._written(*name.split("/"), stand_ins.STAND_INS[name])

    def load(self, name: str) -> ModelPatcher:
        """The diffusion model of family or relative ``name``: built narrow, or by its stock loader, where that takes
        a small one."""
        family = RELATIVES.get(name) or FAMILIES[name]
        if family.narrow:
            return unets.build(family.config, family.narrow)
        return self.load_stock(name)

    def load_stock(self, name: str) -> ModelPatcher:
        """The same by its stock loader, where that knows it."""
        family = RELATIVES.get(name) or FAMILIES[name]
        if family.unet_config:
            return pictures.build(family.config, dict(family.unet_config), family.sharp)
        if family.kind == "checkpoints":  # what its loader calls, without the text encoder and the VAE
            from comfy.sd import load_checkpoint_guess_config

            return load_checkpoint_guess_config(str(self.path(name)), output_vae=False, output_clip=False)[0]
        return self._nodes.UNETLoader().load_unet(self.path(name).name, "default")[0]

    def load_quantised(self, name: str) -> ModelPatcher:
        """Wan 2.1 of a quantised file, one of ``quantised.FILES``, as a node loads it: in inference mode."""
        path = self._written("diffusion_models", f"tiny_wan21 {name}.safetensors", quantised.FILES[name])
        with torch.inference_mode():
            return self._nodes.UNETLoader().load_unet(path.name, "default")[0]

    def load_checkpoint(self, name: str) -> tuple[ModelPatcher, CLIP | None, VAE]:
        """MODEL, CLIP (only ``sd15`` has one) and VAE of family ``name``."""
        return self._nodes.CheckpointLoaderSimple().load_checkpoint(self.path(name).name)

    def load_ip2p(self) -> tuple[ModelPatcher, CLIP, VAE]:
        """MODEL, CLIP and VAE of an Instruct-Pix2Pix checkpoint."""
        return self._nodes.CheckpointLoaderSimple().load_checkpoint(self.stand_in(stand_ins.IP2P).name)

    def load_ltxav(self) -> ModelPatcher:
        """A model of video with sound: latents (1, 128, F, H, W) and (1, 8, T, 16), text of 512 channels."""
        return self.load("LTX-2")

    def load_controlnet(self) -> ControlNet:
        """The ControlNet for ``sd15``."""
        return self._nodes.ControlNetLoader().load_controlnet(self.controlnet_path().name)[0]

    def load_lora(self, model: ModelPatcher, strength: float = 1.0) -> ModelPatcher:
        """A clone of an ``sd15`` model with the LoRA."""
        loader = self._nodes.LoraLoaderModelOnly()
        return loader.load_lora_model_only(model, self.lora_path().name, strength)[0]

    def load_text_encoder(self, clip_type: str = "sd3") -> CLIP:
        """A text encoder of 768 channels; ``sd3`` pads them to the 4096 of the video transformers."""
        return self._nodes.CLIPLoader().load_clip(self.text_encoder_path().name, clip_type)[0]

    def _written(self, kind: str, file: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / kind / file
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            unfinished = self.folder / f"{os.getpid()}.part"
            write(unfinished)
            unfinished.replace(path)  # whole at once: other processes that run tests have the folder, too
        return path

    @cached_property
    def _nodes(self) -> Any:
        """ComfyUI's node classes, with this folder first among its model folders."""
        import folder_paths

        import nodes

        for kind in KINDS:
            folder_paths.add_model_folder_path(kind, str(self.folder / kind), is_default=True)
        return nodes


def sample(
    model: ModelPatcher,
    family: Family,
    *,
    steps: int = 2,
    cfg: float = 4.0,
    seed: int = 0,
    sampler: str = "euler",
    scheduler: str = "normal",
    conditioning: tuple[Conditioning, Conditioning] | None = None,
    sigmas: torch.Tensor | None = None,
    empty: Any = None,
    noise: torch.Tensor | None = None,
) -> Any:
    """Denoised latents of ``family.latent_shape`` by the KSampler node's own path, from zero latents.

    ``sigmas``: other noise levels than the scheduler's; ``empty``: zeros of another shape; ``noise``: other than the
    seed's.
    """
    import comfy.sample

    if empty is None:
        empty = family.zeros() if isinstance(family, Family) else torch.zeros(family.latent_shape)
    noise = comfy.sample.prepare_noise(empty, seed) if noise is None else noise
    positive, negative = conditioning or family.conditioning()
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
            sigmas=sigmas,
        )
