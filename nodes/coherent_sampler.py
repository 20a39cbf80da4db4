"""CoherentSampler: what a sampler draws within its steps is a clip's noise, too."""

from __future__ import annotations

from typing import Any

from comfy.samplers import Sampler
from comfy_api.latest import io

from ..samplers.coherent import (
    CoherentSampler as Coherent,
)
from ..samplers.coherent import draws_of, require_follows_seed, require_leadable, tell_of_nothing
from .inputs import NOISE
from .node import Node


class CoherentSampler(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherentSampler",
            display_name="Coherent Sampler",
            category=NOISE,
            description="Makes a sampler that adds noise within its steps (lcm, ancestral, SDE) add noise that fits "
            "the clip: of the noise node's model, with a seed for each step. Distilled models and stochastic sampling "
            "then stay coherent.",
            search_aliases=["lcm", "ancestral", "sde", "noise sampler", "turbo", "coherent noise"],
            inputs=[
                io.Sampler.Input(
                    "sampler",
                    tooltip="From KSamplerSelect or a sampler node: lcm, euler_ancestral, dpmpp_2m_sde, dpmpp_sde and "
                    "others that add noise. One that adds none is passed on, and the log says so.",
                ),
                io.Noise.Input(
                    "noise",
                    tooltip="The noise that goes into the sampler, from DependencyNoise or VideoNoisePrior. Each step "
                    "draws from its model with a seed of its own.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For the sampler input of SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler: Sampler, noise: Any) -> io.NodeOutput:
        require_leadable(sampler)
        require_follows_seed(noise)
        if draws_of(sampler) == "nothing":
            tell_of_nothing(sampler)
            return io.NodeOutput(sampler)
        return io.NodeOutput(Coherent(sampler, noise))


NODES = [CoherentSampler]
