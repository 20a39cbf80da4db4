"""CoherentSampler: a sampler draws the noise of its steps from the clip's noise model."""

from __future__ import annotations

from typing import Any

from comfy.samplers import Sampler
from comfy_api.latest import io

from ..samplers.coherent import CoherentSampler as Coherent
from ..samplers.coherent import require_follows_seed, require_leadable
from .inputs import NOISE
from .node import Node


class CoherentSampler(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherentSampler",
            display_name="Coherent Sampler",
            category=NOISE,
            description="For samplers that add noise at each step (lcm, ancestral, SDE): the added noise follows the "
            "same model as the clip's noise, with a new seed for each step. Distilled models and stochastic samplers "
            "then stay coherent too.",
            search_aliases=["lcm", "ancestral", "sde", "noise sampler", "turbo", "coherent noise"],
            inputs=[
                io.Sampler.Input(
                    "sampler",
                    tooltip="From KSamplerSelect or a sampler node: lcm, euler_ancestral, dpmpp_2m_sde, dpmpp_sde and "
                    "others that add noise. A sampler that adds none passes through unchanged, and the log says so.",
                ),
                io.Noise.Input(
                    "noise",
                    tooltip="The noise that goes into the sampler, from DependencyNoise or VideoNoisePrior. Each step "
                    "draws new noise from the same model, with its own seed.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For the sampler input of SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler: Sampler, noise: Any) -> io.NodeOutput:
        require_leadable(sampler)
        require_follows_seed(noise)
        return io.NodeOutput(Coherent(sampler, noise))


NODES = [CoherentSampler]
