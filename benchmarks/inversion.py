"""How much of a real clip comes back from its inversion, and what the bilateral filter costs beside kornia's.

    python benchmarks/inversion.py --comfyui DIR [--clips 3] [--frames 8] [--steps 10 25 50] [--out FOLDER]

Clips that the demo model has never seen are encoded, inverted and drawn again under the same prompt with Euler steps
at cfg 1; every mode, number of steps and of refinements. PSNR of the decoded frames is against what the VAE alone makes
of the clip: what the inversion loses, and the VAE does not. A second table shows time and peak memory of our filter and
of kornia's, whose 5 × 5 windows are equal. Run it with the Python of that ComfyUI; FOLDER gets inversion.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from studies import bootstrap, enter_comfyui, markdown, pack, shown
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MODES = ("none", "latent_spatial", "feature_temporal", "literal")
REFINEMENTS = (0, 3)
SUBJECTS = (
    ("circle", "red", "white", "slide"),
    ("square", "yellow", "purple", "all"),
    ("star", "blue", "orange", "turn"),
    ("triangle", "green", "black", "grow"),
)
LATENTS = {
    "SD1.5, 16 frames of 512×512": (16, 4, 64, 64),
    "CogVideoX, 49 frames of 480×720": (1, 16, 13, 60, 90),
    "Wan 2.1, 81 frames of 720×1280": (1, 16, 21, 90, 160),
}
TARGET = 30.0  # dB, by 25 steps of plain inversion with refinement


@dataclass(frozen=True)
class Way:
    mode: str
    steps: int
    refine_iterations: int


@dataclass(frozen=True)
class Trip:
    """A clip's round trip: PSNR in dB of each frame, its noise's norm, the model calls and seconds of inverting."""

    way: Way
    against_vae: list[float]
    against_clip: list[float]
    norm: float
    calls: int
    seconds: float


def ways(steps: list[int]) -> Iterator[Way]:
    """Literal has no fixed point to be refined to."""
    for mode, count, refinements in product(MODES, steps, REFINEMENTS):
        if mode != "literal" or refinements == 0:
            yield Way(mode, count, refinements)


def round_trips(subject: tuple[str, str, str, str], number: int, frames: int, steps: list[int]) -> Iterator[Trip]:
    """Every way with one clip, by the nodes' own code and ComfyUI's sampler."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, DisableNoise, SamplerCustomAdvanced

    loader, inversion = pack("demo.model"), pack("samplers.inversion")
    psnr = pack("metrics.similarity").psnr
    shape, colour, background, motion = subject
    model, text, vae = loader.load_model(), loader.load_clip(), loader.load_vae()
    prompt = text.encode_from_tokens_scheduled(text.tokenize(f"a {colour} {shape} on a {background} background"))
    clip = pack("demo.clips").render_clip(shape, colour, background, motion, frames, seed=number).frames
    latent = {"samples": vae.encode(clip)}
    by_vae = vae.decode(latent["samples"])
    for way in ways(steps):
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", way.steps)
        how = inversion.Inversion(mode=way.mode, refine_iterations=way.refine_iterations)
        start = time.process_time()
        noise, report = inversion.invert_latent(model, prompt, None, 1.0, latent, sigmas, how, number, "benchmark")
        seconds = time.process_time() - start
        silence, guider = DisableNoise.execute().args[0], BasicGuider.execute(model, prompt).args[0]
        euler = comfy.samplers.sampler_object("euler")
        drawn = SamplerCustomAdvanced.execute(silence, guider, euler, sigmas, {"samples": noise}).args[0]
        decoded = vae.decode(drawn["samples"])
        calls = 2 * way.steps if way.mode == "literal" else way.steps * (1 + way.refine_iterations) + 1
        against = [psnr(decoded, other).tolist() for other in (by_vae, clip)]
        yield Trip(way, *against, report.norm[-1], calls, seconds)


def trips_table(trips: list[Trip]) -> str:
    rows = []
    for way in dict.fromkeys(trip.way for trip in trips):
        same = [trip for trip in trips if trip.way == way]
        by_vae, by_clip = (
            shown(bootstrap(torch.tensor([getattr(trip, name) for trip in same])), ".1f")
            for name in ("against_vae", "against_clip")
        )
        norm = f"{sum(trip.norm for trip in same) / len(same):.2f}"
        took = f"{median(trip.seconds for trip in same):.1f}"
        rows.append(
            [way.mode, str(way.steps), str(way.refine_iterations), by_vae, by_clip, norm, str(same[0].calls), took]
        )
    header = ["mode", "steps", "refinements", "PSNR against the VAE's frames (dB)", "against the clip (dB)"]
    return markdown([*header, "norm of the noise", "model calls", "seconds"], rows)


# The filter --------------------------------------------------------------------------------------------------------


def by_kornia(latents: Tensor) -> Tensor:
    import kornia

    pictures = latents.reshape(-1, 1, *latents.shape[-2:])
    return kornia.filters.bilateral_blur(pictures, 5, 1.0, (1.0, 1.0)).reshape(latents.shape)


def by_kornia_unfolded(latents: Tensor) -> Tensor:
    """By the path that kornia takes wherever its loop for the CPU does not serve, as on CUDA."""
    from kornia.filters import bilateral

    fast, bilateral._bilateral_blur_cpu_eligible = bilateral._bilateral_blur_cpu_eligible, lambda *_: False
    try:
        return by_kornia(latents)
    finally:
        bilateral._bilateral_blur_cpu_eligible = fast


def ours(latents: Tensor) -> Tensor:
    return pack("frames.bilateral").bilateral_spatial(latents, 5, 1.0, 1.0)


FILTERS = {"ours": ours, "kornia": by_kornia, "kornia, unfolding": by_kornia_unfolded}


def peak(function: Callable[[Tensor], Tensor], latents: Tensor) -> float:
    """Most memory held at once, the latent's own with it, as a multiple of that."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        function(latents)
    held = most = latents.nbytes
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / latents.nbytes


def seconds(function: Callable[[Tensor], Tensor], latents: Tensor) -> float:
    start = time.process_time()
    function(latents)
    return time.process_time() - start


def filter_costs(count: int, rounds: int = 5) -> list[dict[str, Any]]:
    costs = []
    for name, shape in list(LATENTS.items())[:count]:
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        times = [{kind: seconds(function, latents) for kind, function in FILTERS.items()} for _ in range(rounds)]
        for kind, function in FILTERS.items():
            off = (function(latents) - ours(latents)).abs().max().item()
            took = median(each[kind] for each in times)
            costs.append({"latent": name, "filter": kind, "seconds": took, "peak": peak(function, latents), "off": off})
    return costs


def filters_table(costs: list[dict[str, Any]]) -> str:
    rows = [
        [cost["latent"], cost["filter"], f"{cost['seconds']:.3f}", f"{cost['peak']:.1f}", f"{cost['off']:.0e}"]
        for cost in costs
    ]
    return markdown(["latent", "filter", "seconds", "peak memory / latent", "differs by at most"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--clips", type=int, default=3, choices=range(1, len(SUBJECTS) + 1))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--latents", type=int, default=len(LATENTS), help="to time the filter with, smallest first")
    parser.add_argument("--out", type=Path, help="folder for inversion.json")
    options = parser.parse_args()
    enter_comfyui(options.comfyui.resolve())
    torch.set_num_threads(1)
    with torch.inference_mode():
        costs = filter_costs(options.latents)
        print(filters_table(costs), end="\n\n", flush=True)
        trips = [
            trip
            for number, subject in enumerate(SUBJECTS[: options.clips])
            for trip in round_trips(subject, number, options.frames, options.steps)
        ]
    print(trips_table(trips))
    reached = [trip.against_vae for trip in trips if trip.way == Way("none", 25, 3)]
    if reached:
        figure = shown(bootstrap(torch.tensor(reached)), ".1f")
        print(f"\nTarget, {TARGET:g} dB in mode none at 25 steps with 3 refinements: {figure}.")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        results = {"trips": [asdict(trip) for trip in trips], "filters": costs}
        (options.out / "inversion.json").write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
