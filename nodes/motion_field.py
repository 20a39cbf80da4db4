"""MotionFieldNoise: Text2Video-Zero's latents with motion (arXiv 2303.13439, §3.3.1 and §3.3.3)."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..samplers.latents import with_samples
from ..samplers.motion_field import MotionField, motion_latents
from ..training.token_conditioning import frames_with_tokens
from .checks import InputError
from .inputs import NOISE, cfg_input, noise_seed_input
from .node import Node


class MotionFieldNoise(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionFieldNoise",
            display_name="Motion Field Noise (Text2Video-Zero)",
            category=NOISE,
            description="Starts a clip whose content moves in a chosen direction: it samples the first frame part of "
            "the way, shifts it for every other frame, and adds noise again. Continue from its two outputs with a "
            "sampler that adds no noise.",
            search_aliases=[
                "text2video-zero",
                "motion dynamics",
                "camera pan",
                "zero-shot video",
                "latent warp",
                "background smoothing",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An image model: SD1.5, SD2 or SDXL. Use the same one in the sampler that follows.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt. Use the same one in the sampler that follows."),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt. Use the same one in the sampler that follows."
                ),
                cfg_input(
                    7.5,
                    "How closely the first frame follows the prompt, 0 to 100. Use the same value in the sampler that "
                    "follows.",
                ),
                noise_seed_input(),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent; its batch size is the number of frames. Its content is ignored.",
                ),
                io.Sigmas.Input("sigmas", tooltip="The whole schedule from a scheduler node, from pure noise to 0."),
                io.Float.Input(
                    "delta_x",
                    default=12.0,
                    min=-512.0,
                    max=512.0,
                    step=1.0,
                    round=0.01,
                    tooltip="How far the content moves to the right, in pixels per frame, -512 to 512; negative moves "
                    "it left. A latent moves in steps of 8 pixels. Change it for another speed.",
                ),
                io.Float.Input(
                    "delta_y",
                    default=12.0,
                    min=-512.0,
                    max=512.0,
                    step=1.0,
                    round=0.01,
                    tooltip="How far the content moves down, in pixels per frame, -512 to 512; negative moves it up.",
                ),
                io.Float.Input(
                    "t0",
                    default=0.88,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When the first frame is shifted, as a share of the steps from the clean end. The paper "
                    "uses step 44 of 50. Lower it if the motion does not show: more of the picture exists to be moved.",
                ),
                io.Float.Input(
                    "t1",
                    default=0.94,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the sampler starts, above t0. The paper uses step 47 of 50. Raise it towards 1 to "
                    "let frames differ more and move more freely.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the moving object is: one mask per frame, or one for all. Draw the clip once "
                    "without a mask, and make the mask from that clip. The rest becomes more like the first frame's "
                    "background, which moves along. Leave it empty for no smoothing.",
                ),
                io.Float.Input(
                    "background",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much of the first frame's background the other frames take where the mask is black (α "
                    "in the paper), 0 to 1. 0: none. 0.6: the paper's value. Raise it if the background flickers; "
                    "lower it if it smears.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    tooltip="The noisy frames at t1, for latent_image of SamplerCustomAdvanced with DisableNoise.",
                ),
                io.Sigmas.Output(
                    "sigmas", tooltip="The rest of the schedule from t1, for the sigmas input of that sampler."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        cfg: float,
        noise_seed: int,
        latent_image: dict,
        sigmas: Tensor,
        delta_x: float,
        delta_y: float,
        t0: float,
        t1: float,
        mask: Tensor | None = None,
        background: float = 0.6,
    ) -> io.NodeOutput:
        for name, prompt in (("positive", positive), ("negative", negative)):
            if frames := frames_with_tokens(prompt):
                raise InputError(
                    f"{name} has tokens of its own for each of {frames} frames, from GEAdapterTokens, but this node "
                    "draws the first frame alone. Connect a conditioning whose frames share their tokens: one picture "
                    "in clip_vision_output, or none. The sampler that follows can take the tokens of every frame."
                )
        field = MotionField(delta_x, delta_y, t0, t1, mask, background)
        samples, rest = motion_latents(model, positive, negative, cfg, latent_image, sigmas, field, noise_seed)
        return io.NodeOutput(with_samples(latent_image, samples), rest)


NODES = [MotionFieldNoise]
