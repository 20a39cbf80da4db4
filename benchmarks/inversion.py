"""How much of a real clip comes back from its inversion, and what the bilateral filter costs beside kornia's.

    python benchmarks/inversion.py --comfyui DIR [--clips 3] [--frames 8] [--steps 10 25 50] [--out FOLDER]

Clips that the demo model has never seen are encoded, inverted and drawn again under the same prompt with Euler steps
at cfg 1; every mode, number of steps and of refinements. PSNR of the decoded frames is against what the VAE alone makes
of the clip: what the inversion loses, and the VAE does not. A second table shows time and peak memory of our filter and
of kornia's, whose 5 × 5 windows are equal. Run it with the Python of that ComfyUI; FOLDER gets the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import median

import torch
from claims import Cost, estimate, shown
from figures import table
from harness import MIB, Demo, Json, command_line, enter, now, pack, peak_of, save, take_turns
from torch import Tensor

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
    demo, inversion, psnr = Demo(), pack("samplers.inversion"), pack("metrics.similarity").psnr
    shape, colour, background, motion = subject
    prompt = demo.encode(f"a {colour} {shape} on a {background} background")
    clip = pack("demo.clips").render_clip(shape, colour, background, motion, frames, seed=number).frames
    latent = {"samples": demo.vae.encode(clip)}
    by_vae = demo.decode(latent["samples"])
    for way in ways(steps):
        sigmas = demo.sigmas(way.steps, "normal")
        how = inversion.Inversion(mode=way.mode, refine_iterations=way.refine_iterations)
        start = now()
        noise, report, _ = inversion.invert_latent(
            demo.model, prompt, None, 1.0, latent, sigmas, how, number, "benchmark"
        )
        seconds = now() - start
        decoded = demo.decode(demo.redraw(demo.model, noise, sigmas, prompt))
        calls = 2 * way.steps if way.mode == "literal" else way.steps * (1 + way.refine_iterations) + 1
        against = [psnr(decoded, other).tolist() for other in (by_vae, clip)]
        yield Trip(way, *against, report.norm[-1], calls, seconds)


def trips_table(trips: list[Trip]) -> str:
    rows = []
    for way in dict.fromkeys(trip.way for trip in trips):
        same = [trip for trip in trips if trip.way == way]
        by_vae, by_clip = (
            shown(estimate(torch.tensor([getattr(trip, name) for trip in same])), ".1f")
            for name in ("against_vae", "against_clip")
        )
        norm = f"{sum(trip.norm for trip in same) / len(same):.2f}"
        took = f"{median(trip.seconds for trip in same):.1f}"
        rows.append(
            [way.mode, str(way.steps), str(way.refine_iterations), by_vae, by_clip, norm, str(same[0].calls), took]
        )
    header = ["mode", "steps", "refinements", "PSNR against the VAE's frames (dB)", "against the clip (dB)"]
    return table([*header, "norm of the noise", "model calls", "seconds"], rows)


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


def filter_costs(count: int, rounds: int = 5) -> list[Json]:
    """Seconds, and the most memory held at once, the latent's own with it, as a multiple of that."""
    costs = []
    for name, shape in list(LATENTS.items())[:count]:
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        runs = {kind: partial(function, latents) for kind, function in FILTERS.items()}
        times, right = take_turns(runs, rounds), ours(latents)
        for kind, run in runs.items():
            peak, off = 1 + MIB * peak_of(run) / latents.nbytes, (run() - right).abs().max().item()
            costs.append({"latent": name, "filter": kind, "seconds": median(times[kind]), "peak": peak, "off": off})
    return costs


def filters_table(costs: list[Json]) -> str:
    rows = [
        [cost["latent"], cost["filter"], f"{cost['seconds']:.3f}", f"{cost['peak']:.1f}", f"{cost['off']:.0e}"]
        for cost in costs
    ]
    return table(["latent", "filter", "seconds", "peak memory / latent", "differs by at most"], rows)


def costs(results: Json) -> list[Cost]:
    """The bilateral filter beside kornia's, and the round trip."""
    found = []
    for latent in dict.fromkeys(row["latent"] for row in results["filters"]):
        by = {row["filter"]: row for row in results["filters"] if row["latent"] == latent}
        mine, kornia, unfolding = by["ours"], by["kornia"], by["kornia, unfolding"]
        found += [
            Cost(
                f"Bilateral filter, {latent}: time, of kornia’s",
                f"{mine['seconds'] / kornia['seconds']:.2f}",
                peer=f"kornia’s path for GPUs {unfolding['seconds'] / kornia['seconds']:.2f}",
            ),
            Cost(
                f"Bilateral filter, {latent}: peak memory, of the latent’s own",
                f"{mine['peak']:.1f}",
                "2, a latent in and one out",
                f"kornia {kornia['peak']:.1f}, its path for GPUs {unfolding['peak']:.1f}",
            ),
        ]
    for steps in sorted({trip["way"]["steps"] for trip in results["trips"]}):
        way = {"mode": "none", "steps": steps, "refine_iterations": 3}
        psnr = [trip["against_vae"] for trip in results["trips"] if trip["way"] == way]
        goal = f"at least {TARGET:g}, our target" if steps == 25 else ""
        what = f"Round trip of rendered clips ({len(psnr)}), {steps} steps, 3 refinements: PSNR in dB"
        found.append(Cost(what, shown(estimate(torch.tensor(psnr)), ".1f"), goal))
    return found


def main() -> None:
    parser = command_line(
        __doc__,
        clips=(3, "at most 4"),
        frames=(8, "of a clip"),
        latents=(len(LATENTS), "to time the filter with, smallest first"),
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50])
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    enter(arguments)
    with torch.inference_mode():
        filters = filter_costs(arguments.latents)
        print(filters_table(filters), end="\n\n", flush=True)
        subjects = enumerate(SUBJECTS[: arguments.clips])
        trips = [t for n, each in subjects for t in round_trips(each, n, arguments.frames, arguments.steps)]
    print(trips_table(trips))
    save(arguments.out, {"trips": [asdict(trip) for trip in trips], "filters": filters})


if __name__ == "__main__":
    main()
