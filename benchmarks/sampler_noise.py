"""How long samplers keep what the frames' noises have in common.

    python benchmarks/sampler_noise.py --comfyui DIR [--out FOLDER]

The correlation of neighbouring frames at the demo model's input, at its 1st, 2nd and 4th call: dependency noise of kl
0.01, 8 frames of 128 × 128 pixels, 20 steps of ``normal``, cfg 1. Samplers that draw noise of their own undo it. The
last two columns are with Coherent Sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from figures import table
from harness import Demo, Json, command_line, dependency_noise, empty, enter, guided, pack, save

STEPS, FRAMES, KL, CALLS = 20, 8, 0.01, (1, 2, 4)


def samplers() -> dict[str, Callable[[], Any]]:
    from comfy.samplers import ksampler, sampler_object

    named = ("euler", "ddim", "dpmpp_sde", "euler_ancestral", "ddpm", "dpmpp_2m_sde", "lcm")
    return {
        **{name: partial(sampler_object, name) for name in named},
        "euler_ancestral, eta 0.5": partial(ksampler, "euler_ancestral", {"eta": 0.5}),
    }


class _EnoughError(Exception):
    """The calls that count are over."""


def correlations(demo: Demo, sampler: Any) -> list[float]:
    """Of neighbours' inputs, their mean, at the calls that count."""
    measured: list[float] = []

    def look(call: Any, given: Json) -> Any:
        measured.append(pack("noise.measure").correlation(given["input"]).diagonal(1).mean().item())
        if len(measured) == max(CALLS):
            raise _EnoughError
        return call(given["input"], given["timestep"], **given["c"])

    model = demo.model.clone()
    model.set_model_unet_function_wrapper(look)
    latent, prompt = empty(FRAMES), demo.encode("a red circle on a blue background")
    noise = dependency_noise(0, KL).generate_noise(latent)
    try:
        guided(model, noise, latent["samples"], demo.sigmas(STEPS, "normal"), prompt, sampler=sampler)
    except _EnoughError:
        return [measured[call - 1] for call in CALLS]
    raise RuntimeError(f"expected {max(CALLS)} model calls or more, got {len(measured)}")


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    enter(arguments)
    demo = Demo()
    with torch.inference_mode():
        coherent = partial(pack("nodes.coherent_sampler").CoherentSampler.execute, noise=dependency_noise(0, KL))
        figures = {
            name: correlations(demo, make()) + correlations(demo, coherent(make())[0])[1:]
            for name, make in samplers().items()
        }
    save(arguments.out, figures)
    rows = [[name, *(f"{x:.3f}" for x in each)] for name, each in figures.items()]
    columns = [f"call {call}" for call in CALLS]
    print(table(["sampler", *columns, *(f"{column}, coherent" for column in columns[1:])], rows))


if __name__ == "__main__":
    main()
