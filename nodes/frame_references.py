"""FrameReferences: an image editing model gets each frame of a video as its reference, and edits the video."""

from __future__ import annotations

from typing import Any

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..attention.references import with_references
from .checks import InputError
from .inputs import EDITING
from .node import Node


class FrameReferences(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrameReferences",
            display_name="Frame References",
            category=EDITING,
            description="Gives every frame of a clip its own reference picture, so that an image editing model (Flux "
            "Kontext, Flux.2, Qwen-Image-Edit, Krea 2) can edit a video. Add Dependency Noise and Temporal Momentum "
            "Attention to keep the frames consistent.",
            search_aliases=["reference latent", "video editing", "kontext", "qwen edit", "instruct pix2pix", "edit"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt, which says what to change. References it already has are kept.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The video to edit, one picture for each frame of the latent's batch. Needs vae. Scale it "
                    "to the size the model was trained on, usually about one megapixel.",
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="In place of images: one latent for each frame, as a batch. A video VAE's latent of "
                    "several frames does not fit; connect images and vae instead.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The model's VAE, which encodes images one at a time. Not needed for latents.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The prompt with the references, for the sampler's positive or negative."
                )
            ],
        )

    @classmethod
    def execute(
        cls, conditioning: list, images: Tensor | None = None, latents: dict | None = None, vae: Any = None
    ) -> io.NodeOutput:
        if images is not None and latents is None:
            if vae is None:
                raise InputError(
                    "vae is not connected, expected the model's VAE to encode images. Connect it, or latents."
                )
            return io.NodeOutput(with_references(conditioning, _encoded(images[..., :3], vae)))
        if latents is not None and images is None:
            return io.NodeOutput(with_references(conditioning, _one_a_frame(latents["samples"])))
        both = "Both are" if images is not None else "Neither is"
        raise InputError(f"images, latents: expected one of them. {both} connected: connect one.")


def _encoded(images: Tensor, vae: Any) -> Tensor:
    """Picture by picture: a video VAE would take the batch for a video, and encode several as one."""
    bar, latents = ProgressBar(len(images)), []
    for image in images.split(1):
        latents.append(vae.encode(image))
        bar.update(1)
    return torch.cat(latents)


def _one_a_frame(samples: Tensor) -> Tensor:
    if samples.is_nested or samples.ndim not in (4, 5) or (samples.ndim == 5 and samples.shape[2] > 1):
        shape = "parts of several kinds" if samples.is_nested else f"shape {tuple(samples.shape)}"
        raise InputError(
            f"latents has {shape}, expected (frames, channels, height, width), or (frames, channels, 1, height, width) "
            "for models such as Qwen-Image and Krea 2. Connect images and vae, which encodes each picture by itself."
        )
    return samples


NODES = [FrameReferences]
