"""Bilateral DDIM inversion (GE-Adapter §3.2): the noise that a clip could have been drawn from, to draw it anew."""

from __future__ import annotations

from dataclasses import asdict

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..samplers.inversion import MODES, Inversion, InversionSampler, Mode, invert_latent
from ..samplers.latents import with_samples
from ..samplers.noises import GivenNoise, clip_of
from ..samplers.trajectory import NOTHING
from .checks import InputError
from .inputs import INVERSION, TrajectoryType, cfg_input, refine_input, seed_input
from .node import Node
from .reports import to_json

KEPT_IN = {"fp32": torch.float32, "fp16": torch.float16, "off": None}

LEAST_SPREAD = 0.1
"""Of a latent taken for noise. Inversions of the demo clips have 0.17 to 0.96, by steps and filter; the clips 0.04."""


def filter_inputs(modes: tuple[Mode, ...]) -> list[io.Input]:
    """What both inverting nodes have in common: the fields of Inversion, in its order."""
    over_time = "feature_temporal" in modes
    described = {
        "latent_spatial": "latent_spatial: smooths each frame's latent, as in the paper.",
        "feature_temporal": "feature_temporal: smooths the UNet's last features over the frames, as in the authors' "
        "code.",
        "none": "none: plain inversion, the most faithful.",
        "literal": "literal: the paper's equation as printed, which cannot be inverted; for study only.",
    }
    return [
        io.Combo.Input(
            "mode",
            options=list(modes),
            default="latent_spatial",
            tooltip=" ".join(described[mode] for mode in modes),
        ),
        io.Int.Input(
            "kernel_size",
            default=5,
            min=1,
            max=31,
            step=2,
            tooltip="Width of the filter window, odd, 1 to 31 latent pixels"
            f"{' (frames in feature_temporal)' * over_time}. 1 means no filter. Raise it together with sigma_spatial.",
        ),
        io.Float.Input(
            "sigma_spatial",
            default=1.0,
            min=0.01,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip=f"How far the filter reaches, 0.01 to 100 latent pixels{' or frames' * over_time}. Raise it to "
            "smooth more.",
        ),
        io.Float.Input(
            "sigma_intensity",
            default=1.0,
            min=0.01,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip="How much values may differ and still be averaged, 0.01 to 100; latents have a standard deviation "
            "of about 1. Lower it to keep edges; high values approach a plain blur.",
        ),
        io.Float.Input(
            "filter_until",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps that are filtered, 0 to 1, counted from the clean end. Lower it to keep the "
            "clip's detail; 0 filters nothing.",
        ),
        io.Boolean.Input(
            "restandardise",
            default=True,
            tooltip="Restores the standard deviation that filtering reduces, because a model takes a smaller one for "
            "less noise. Turn it off to follow the paper to the letter.",
        ),
        refine_input(),
    ]


class BilateralDDIMInvert(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BilateralDDIMInvert",
            display_name="Bilateral DDIM Invert (GE-Adapter)",
            category=INVERSION,
            description="Finds the noise from which a model would draw a given clip, so that you can redraw it with "
            "another prompt. A bilateral filter can smooth the clip on the way.",
            search_aliases=["ddim inversion", "unsampler", "invert video", "ge-adapter", "video editing", "bilateral"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will redraw the clip. It is cloned, not changed."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the clip as it is."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt. It is needed only if cfg is not 1.",
                ),
                cfg_input(
                    1.0,
                    "Guidance during inversion. Leave it at 1, because inversion with guidance soon diverges. To get "
                    "the clip back, sample at cfg 1; to change it, sample at a higher cfg.",
                ),
                io.Latent.Input("latent_image", tooltip="The clip's latent, from VAE Encode, without a noise mask."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels as the sampler will get them, in falling order, from a scheduler node. "
                    "This node runs them in reverse. More steps reproduce the clip more faithfully.",
                ),
                *filter_inputs(MODES),
                seed_input(
                    "Seed of the noise that mode 'literal' adds. The other modes use no noise.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "keep_trajectory",
                    options=list(KEPT_IN),
                    default="fp32",
                    optional=True,
                    advanced=True,
                    tooltip="Precision of the trajectory output. It stays in RAM and holds one latent per step, plus "
                    "one; the log gives its size. Choose fp16 to halve that for a long or large clip, off if no edit "
                    "uses the trajectory.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    tooltip="The clip's noise. Use it as latent_image of a sampler, with DisableNoise. For flow "
                    "models and CogVideoX, pass it through NoiseFromLatent.",
                ),
                io.String.Output(
                    "round_trip",
                    tooltip="JSON: for each step the noise level, the latent's norm, which should end near 1, and the "
                    "drift, which is the error of sampling one step back.",
                ),
                TrajectoryType.Output(
                    "trajectory",
                    tooltip="The clip's latent at every step. Connect it to trajectory of Entropy-Guided Edit, which "
                    "then follows the real clip instead of a reconstruction.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        cfg: float,
        latent_image: dict,
        sigmas: Tensor,
        mode: Mode,
        kernel_size: int,
        sigma_spatial: float,
        sigma_intensity: float,
        filter_until: float,
        restandardise: bool,
        refine_iterations: int,
        seed: int = 0,
        negative: list | None = None,
        keep_trajectory: str = "fp32",
    ) -> io.NodeOutput:
        if negative is None and cfg != 1.0:
            raise ValueError(f"cfg is {cfg}, which needs the negative prompt. Connect negative, or set cfg to 1.")
        inversion = Inversion(
            mode, kernel_size, sigma_spatial, sigma_intensity, filter_until, restandardise, refine_iterations
        )
        samples, report, trajectory = invert_latent(
            model,
            positive,
            negative,
            cfg,
            latent_image,
            sigmas,
            inversion,
            seed,
            cls.node_name,
            KEPT_IN[keep_trajectory],
        )
        told = to_json({**asdict(inversion), **asdict(report)})
        return io.NodeOutput(with_samples(latent_image, samples), told, trajectory or NOTHING)


class SamplerBilateralDDIMInvert(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamplerBilateralDDIMInvert",
            display_name="Sampler: Bilateral DDIM Invert (GE-Adapter)",
            category=INVERSION,
            description="Bilateral DDIM inversion as a sampler, for SamplerCustomAdvanced with any guider. It needs "
            "FlipSigmas after the scheduler, DisableNoise, and the clip as latent_image.",
            search_aliases=["ddim inversion", "unsampler", "invert video", "ge-adapter", "reverse sampling"],
            inputs=filter_inputs(tuple(mode for mode in MODES if mode != "feature_temporal")),
            outputs=[io.Sampler.Output("sampler", tooltip="A sampler that goes from the clip to its noise.")],
        )

    @classmethod
    def execute(
        cls,
        mode: Mode,
        kernel_size: int,
        sigma_spatial: float,
        sigma_intensity: float,
        filter_until: float,
        restandardise: bool,
        refine_iterations: int,
    ) -> io.NodeOutput:
        inversion = Inversion(
            mode, kernel_size, sigma_spatial, sigma_intensity, filter_until, restandardise, refine_iterations
        )
        return io.NodeOutput(InversionSampler(inversion))


class NoiseFromLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseFromLatent",
            display_name="Noise from Latent",
            category=INVERSION,
            description="Turns a fully noisy latent, such as the result of an inversion, into noise for a sampler. "
            "Flow models (Wan, LTXV, HunyuanVideo) and CogVideoX need it to restart from their highest noise level.",
            search_aliases=["latent to noise", "ddim inversion", "restart sampling", "unsampler"],
            inputs=[
                io.Latent.Input("latent", tooltip="A latent at the model's highest noise level, from an inversion."),
                io.Model.Input("model", tooltip="The model that will sample; it determines how noise is scaled."),
            ],
            outputs=[
                io.Noise.Output(
                    "noise",
                    tooltip="The noise for SamplerCustomAdvanced. It is correct at the model's highest noise level "
                    "with an empty latent_image; flow models accept any latent.",
                )
            ],
        )

    @classmethod
    def execute(cls, latent: dict, model: ModelPatcher) -> io.NodeOutput:
        given = GivenNoise.of(model, latent)
        spread = clip_of(given.noise).float().std(correction=0).item()
        if not LEAST_SPREAD <= spread <= 1 / LEAST_SPREAD:
            raise InputError(
                f"latent is not at the model's highest noise level: as noise its standard deviation is {spread:.2g}, "
                "expected about 1. It is probably empty, or a clip from VAE Encode or a sampler. Connect the latent of "
                "an inversion that goes up to the highest noise level."
            )
        return io.NodeOutput(given)


NODES = [BilateralDDIMInvert, SamplerBilateralDDIMInvert, NoiseFromLatent]
