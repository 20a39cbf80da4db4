"""MatchClipColour and MatchLatentColour: match a clip's colours to other frames."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_management
from comfy.nested_tensor import NestedTensor
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..frames.colour import Match, matched_latents, matched_pictures
from ..frames.colour_maps import METHODS
from ..samplers.latents import with_samples
from .node import Node

COLOUR = "coherence/colour"


def _settings(methods: Iterable[str], explained: str) -> list[io.Input]:
    return [
        io.Combo.Input("method", options=list(methods), default="mean_std", tooltip=explained),
        io.Float.Input(
            "momentum",
            default=0.9,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How many neighbouring frames are measured together, so that nothing flickers. 0: each frame "
            "alone. 0.9: about 20 frames. 1: one steady correction for the whole clip. Lower it if the clip's colours "
            "change from frame to frame; raise it if the result flickers when something moves.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far the colours move towards the reference. 0: not at all. 1: all the way. Lower it to keep "
            "some of the clip's own look.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="The area to measure, in white: one mask for all frames or one for each. The whole picture is "
            "still corrected. Leave out anything that changes size or enters the picture; it would count as a change "
            "of colour.",
        ),
    ]


class MatchClipColour(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MatchClipColour",
            display_name="Match Clip Colour",
            category=COLOUR,
            description="Matches a clip's colours to reference frames, such as its own first frame or the clip before "
            "it. It reduces the drift of brightness, contrast and saturation that builds up when clips continue each "
            "other, without adding flicker.",
            search_aliases=[
                "color match",
                "colour transfer",
                "color drift",
                "reinhard",
                "histogram matching",
                "flicker",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The clip to correct. Transparency is kept."),
                io.Image.Input(
                    "reference",
                    tooltip="The frames to match: the clip's first frame, or the last frames of the clip before. They "
                    "are measured together, as one look. Any size and number.",
                ),
                *_settings(
                    METHODS,
                    "mean_std: mean and spread of each channel in CIELAB; the safest. covariance: also how the "
                    "channels vary together, for a cast that differs from colour to colour. histogram: the whole tone "
                    "curve, for clipped or distorted contrast; it can cause banding in plain areas.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The corrected clip, with values from 0 to 1.")],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        reference: Tensor,
        method: str = "mean_std",
        momentum: float = 0.9,
        strength: float = 1.0,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        bar = ProgressBar(len(reference) + 2 * len(images))
        device = comfy.model_management.get_torch_device()
        match = Match(method, momentum, strength)
        return io.NodeOutput(matched_pictures(images, reference, match, mask, device, lambda: bar.update(1)))


class MatchLatentColour(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MatchLatentColour",
            display_name="Match Latent Colour",
            category=COLOUR,
            description="Matches a clip's latents to the statistics of reference latents, channel by channel. Use it "
            "between two runs that continue each other, without decoding, so that colour and contrast do not drift.",
            search_aliases=["latent color match", "latent adain", "color drift", "normalize latent", "extend video"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="The clip to correct, as a sampler returns it: pictures or a video. In a video with sound, "
                    "the sound is not changed.",
                ),
                io.Latent.Input(
                    "reference",
                    tooltip="The latents to match, from the same model: the first run, or a picture from VAE Encode. "
                    "All frames are measured together, as one look. Any size and number.",
                ),
                *_settings(
                    [method for method in METHODS if method != "histogram"],
                    "mean_std: mean and spread of each latent channel; the safest. covariance: also how the channels "
                    "vary together, because a colour cast spreads over several of them.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="The corrected latents, with their noise mask and everything else that came with them."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        latent: dict,
        reference: dict,
        method: str = "mean_std",
        momentum: float = 0.9,
        strength: float = 1.0,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        parts, place = _parts(latent)
        others, wanted = _parts(reference)
        parts[place] = matched_latents(parts[place], others[wanted], Match(method, momentum, strength), mask)
        samples = NestedTensor(parts) if latent["samples"].is_nested else parts[place]
        return io.NodeOutput(with_samples(latent, samples))


def _parts(latent: dict) -> tuple[list[Tensor], int]:
    """The parts of the samples, and the index of the pictures: the one with five axes if there are several."""
    samples = latent["samples"]
    if not samples.is_nested:
        return [samples], 0
    parts = list(samples.unbind())
    return parts, next((place for place, part in enumerate(parts) if part.ndim == 5), 0)


NODES = [MatchClipColour, MatchLatentColour]
