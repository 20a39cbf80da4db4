"""GE-Adapter at toy scale: what the adapter adds to ZS²-sampled and to edited clips, part by part.

    python benchmarks/ge_adapter_study.py --comfyui DIR [--clips 12] [--steps 400] [--out FOLDER] [--publish]

Adapters are trained on rendered clips that are not measured: as the paper has it; without shared tokens; without
per-frame tokens; without the temporal loss; with the temporal loss a thousand times as heavy, as on this model the
paper's weight leaves next to nothing of it; and from other timesteps on (the paper's Fig. 11). An untrained one, whose
LoRA is nothing, says what tokens do by being there. Each is then put on the same clips: *sampled* with ZS² from a
prompt, and *edited*, rendered clips that were inverted and drawn anew. A last part inverts with the bilateral filter,
by kernel size and steps (the paper's Fig. 5).

The demo model has no CLIP vision model, and none is fetched: per-frame tokens come from ComfyUI's CLIP vision classes
with random weights, whose hidden states still tell pictures apart. Sampled clips have no frames to show: they get the
shared tokens alone.

Measured: the share of the prompt that frames obey and the SSIM of neighbouring ones; of edits also what editing_study
measures; of inversions PSNR against what the VAE alone makes of the clip. Run it with the Python of that ComfyUI.
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from time import monotonic
from typing import Any

import torch
from claims import Claim, Use, estimate, shown
from editing_study import CFG, HALF, KL, MEASURES, TEMPLATE, Bench, Clip, measure
from figures import claims_table, means, publish, rows_chart, table
from harness import Json, Records, command_line, dependency_noise, empty, enter, guided, obeys, pack
from power import worth
from torch import Tensor
from torch.nn import functional as F

KERNELS, STEPS_OF_INVERSION, LEVEL = (0, 3, 5, 9), (4, 8, 16), 5
"""Kernel 0 is plain DDIM inversion; 5 is the paper's."""
INFERENCE = (0.5, 0.8, 0.9)
"""From which share of the noise levels on the LoRA is in the model; 0.9 is the paper's."""
OURS, WITHOUT = "adapter, on 0.9 to 1", "without"
USES = {
    ("The adapter makes clips more consistent", "sampled", "consistency"): Use(
        "frames that are more alike", "GEAdapterApply", "on 0.9 to 1 of the noise levels"
    ),
    ("Inversion with the bilateral filter is better than without, and at more", "inverted", "psnr"): Use(
        "a clip that comes back from its inversion",
        "BilateralDDIMInvert with its filter",
        "latent_spatial, kernel_size 5",
    ),
}
"""By claim, part and measure."""
PARTS = {"sampled": "Clips sampled with ZS²", "edited": "Rendered clips, edited"}
INVERTED = {"psnr": ("PSNR of the clip drawn again (dB)", ".1f"), "consistency": MEASURES["consistency"]}
RATE, RANK, MU, STRENGTH = 1e-3, 4, 0.9, 0.5
VARIANTS: dict[str, dict[str, Any]] = {
    "adapter": {},
    "no shared tokens": {"shared_tokens": 0},
    "no per-frame tokens": {"vision": False},
    "no temporal loss": {"temporal_weight": 0.0},
    "temporal loss × 1000": {"temporal_weight": 10.0},
    "trained from 0.8": {"temporal_range_start": 0.8},
    "trained from 0.9": {"temporal_range_start": 0.9},
}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_act": "quick_gelu",
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "image_size": 112,
    "patch_size": 16,
    "projection_dim": 64,
}


class Vision:
    """ComfyUI's CLIP vision classes at a fortieth of their size, random: 50 hidden states a picture, as a ViT-B/32."""

    def __init__(self) -> None:
        import comfy.clip_model
        import comfy.ops

        model = comfy.clip_model.CLIPVisionModelProjection(VISION, torch.float32, "cpu", comfy.ops.disable_weight_init)
        generator = torch.Generator().manual_seed(0)
        weights = {}
        for name, x in model.state_dict().items():
            if x.ndim < 2:
                weights[name] = torch.full(x.shape, float(name.endswith("norm.weight") or "norm1.w" in name))
            elif x.is_floating_point():
                weights[name] = torch.randn(x.shape, generator=generator) / x[0].numel() ** 0.5
            else:
                weights[name] = x
        model.load_state_dict(weights)
        self._model = model

    def __call__(self, frames: Tensor) -> Tensor:
        """Hidden states (F, 50, 64) of frames (F, H, W, 3)."""
        side = VISION["image_size"]
        pixels = F.interpolate(frames.movedim(-1, 1), (side, side), mode="bilinear", antialias=True)
        return self._model((pixels - 0.5) / 0.25)[0]


class Study:
    def __init__(self, frames: int, steps: int, trained_on: int, variants: list[str]) -> None:
        self.bench, self.vision, self.frames, self.steps = Bench("image", frames), Vision(), frames, steps
        self.trained_on, self.variants = trained_on, variants

    @cached_property
    def adapters(self) -> dict[str, Any]:
        """By name of a variant the adapter, trained on the same clips in the same order."""
        training = pack("training.ge_adapter_training")
        latents, captions, hidden = [], [], []
        for number in range(self.trained_on):
            clip = self._rendered(10_000 + number)
            latents.append(self.bench.vae.encode(clip.frames))
            captions.append(self.bench.encode(clip.prompt))
            hidden.append(self.vision(clip.frames))
        adapters = {}
        for name in self.variants:
            changes = VARIANTS[name]
            seen = torch.cat(hidden) if changes.get("vision", True) else None
            clips = training.Clips({"samples": torch.cat(latents)}, self.frames, captions, seen)
            settings = training.Settings(
                rank=RANK, steps=self.steps, learning_rate=RATE, warmup_steps=self.steps // 10, gradient_accumulation=1
            )
            settings = replace(settings, **{key: value for key, value in changes.items() if key != "vision"})
            began = monotonic()
            done = training.train_adapter(self.bench.model, clips, settings)
            adapters[name] = done.adapter
            print(f"trained: {name}, {monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return adapters | {"untrained": self._untrained(adapters["adapter"])}

    def _untrained(self, trained: Any) -> Any:
        """The adapter that the training of ``trained`` began with."""
        begin, about = pack("training.ge_adapter").untrained, trained.training
        shared, seed = len(trained.shared_tokens), int(about.options["seed"])
        widths = (trained.text_width, trained.vision_width)
        return begin(self.bench.model.model, about.layers, trained.rank, shared, *widths, self.frames, seed)

    def _rendered(self, seed: int) -> Any:
        shapes, rng = pack("demo.shapes"), random.Random(seed)
        drawn, scene, _ = self.bench.render(shapes.random_scene(rng), rng, seed)
        return Namespace(frames=drawn.frames, prompt=shapes.fill(TEMPLATE, scene, random.Random(0)))

    def with_adapter(
        self, adapter: Any, end_percent: float, frames: Tensor | None, model: Any = None
    ) -> tuple[Any, Any]:
        """The model with the LoRA, and what puts tokens before a conditioning; both plain without an adapter."""
        model = model or self.bench.model
        if adapter is None:
            return model, lambda conditioning: conditioning
        hidden = None if frames is None or adapter.projection is None else self.vision(frames)
        add = pack("training.token_conditioning").with_tokens
        model = pack("samplers.lora_steps").with_lora(model, adapter.lora, STRENGTH, 0.0, end_percent, "study")
        return model, lambda conditioning: add(conditioning, adapter, hidden)

    def sampled(self, clip: Clip, adapter: Any, end_percent: float) -> dict[str, float]:
        """ZS² from the target's prompt."""
        model, tokens = self.with_adapter(adapter, end_percent, None)
        model = pack("nodes.momentum").TemporalMomentumAttention.execute(model, MU).args[0]
        latent = empty(self.frames)
        noise = dependency_noise(clip.seed, KL).generate_noise(latent)
        prompts = (tokens(self.bench.encode(prompt)) for prompt in (clip.prompts[1], ""))
        frames = self.bench.decode(guided(model, noise, latent["samples"], self.bench.schedule, *prompts, CFG))
        return {
            "fidelity": obeys(frames, clip.target, pack("demo.reader").ATTRIBUTES).mean().item(),
            "consistency": pack("metrics.similarity").ssim(frames[1:], frames[:-1]).mean().item(),
        }

    def edited(self, clip: Clip, adapter: Any, end_percent: float, way: dict[str, str]) -> dict[str, float]:
        model, tokens = self.with_adapter(adapter, end_percent, clip.frames)
        return measure(self.bench.edit_clip(clip, way, model, tokens)[0], clip)

    def inverted(self, clip: Clip) -> dict[str, dict[str, float]]:
        """What comes back of the clip from an inversion with the paper's filter, by kernel and steps."""
        similarity, bench = pack("metrics.similarity"), self.bench
        clean = bench.vae.encode(clip.frames)
        best, text, figures = bench.decode(clean), bench.encode(clip.prompts[0]), {}
        for kernel, steps in product(KERNELS, STEPS_OF_INVERSION):
            sigmas = bench.sigmas(steps)
            how = {"mode": "latent_spatial" if kernel else "none", "kernel_size": kernel or 3}
            start = bench.invert(bench.model, clean, clip.prompts[0], sigmas, **how)
            frames = bench.decode(bench.redraw(bench.model, start, sigmas, text))
            figures[f"{kernel} {steps}"] = {
                "psnr": similarity.psnr(frames, best).mean().item(),
                "consistency": similarity.ssim(frames[1:], frames[:-1]).mean().item(),
            }
        return figures

    def record(self, seed: int) -> dict[str, Any]:
        """All figures of one clip."""
        clip = self.bench.clip("rendered", seed)
        way = next(way for name, way in self.bench.ways(clip) if name == HALF)
        ways = {WITHOUT: (None, 0.1)}
        for name, adapter in self.adapters.items():
            grid = name == "adapter" or name.startswith("trained from")
            for start in INFERENCE if grid else INFERENCE[-1:]:
                ways[f"{name}, on {start} to 1"] = (adapter, round(1 - start, 3))
        return {
            "seed": seed,
            "steps": self.steps,
            "sampled": {name: self.sampled(clip, *how) for name, how in ways.items()},
            "edited": {name: self.edited(clip, *how, way) for name, how in ways.items()},
            "inverted": self.inverted(clip),
        }


def values(records: list[Json], part: str, way: str, name: str) -> Tensor:
    return torch.tensor([record[part][way][name] for record in records], dtype=torch.float64)


def gain(records: list[Json], part: str, way: str, name: str, other: str = WITHOUT) -> Tensor:
    return values(records, part, way, name) - values(records, part, other, name)


def claims(records: list[Json]) -> list[Claim]:
    """Sampled, edited and inverted clips."""

    def claim(where: str, text: str, part: str, way: str, other: str, name: str) -> Claim:
        title, form = (INVERTED if part == "inverted" else MEASURES)[name]
        about = f"{part} clips, adapters of {records[0]['steps']} steps" if part in PARTS else "rendered clips"
        figure = f"{title}, “{_named(way)}” less “{_named(other)}”; {about}"
        figures, use = gain(records, part, way, name, other), USES.get((text, part, name))
        return Claim.of(where, text, figure, figures, "+" + form, 1, worth=worth(name), use=use)

    found = []
    for part in PARTS:
        found += [
            claim("abstract, table 1", "The adapter makes clips more consistent", part, OURS, WITHOUT, "consistency"),
            claim("abstract, table 1", "The adapter brings clips closer to the text", part, OURS, WITHOUT, "fidelity"),
        ]
    for variant, where, text, name in (
        ("no shared tokens", "appendix A", "Shared tokens keep the meaning: without them it suffers", "fidelity"),
        ("no per-frame tokens", "§3.3", "Per-frame tokens keep frames consistent", "consistency"),
        ("no temporal loss", "§3.2", "The temporal loss makes frames more consistent", "consistency"),
    ):
        without = f"{variant}, on 0.9 to 1"
        if without in records[0]["edited"]:
            found.append(claim(where, text, "edited", OURS, without, name))
    for name in ("fidelity", "consistency"):
        text = "Put on from 0.5 of the noise levels it measures better than from 0.9"
        found.append(claim("figure 11", text, "edited", "adapter, on 0.5 to 1", OURS, name))
    few, many = STEPS_OF_INVERSION[0], STEPS_OF_INVERSION[-1]
    for count, about in ((few, "at few steps above all"), (many, "and at more")):
        for name in INVERTED:
            text = f"Inversion with the bilateral filter is better than without, {about}"
            found.append(claim("table 2, figure 5", text, "inverted", f"{LEVEL} {count}", f"0 {count}", name))
    text = "A larger kernel raises the PSNR"
    return [*found, claim("figure 5", text, "inverted", f"{KERNELS[-1]} {few}", f"{KERNELS[1]} {few}", "psnr")]


def _named(way: str) -> str:
    """An inversion's kernel and steps in words."""
    kernel, _, steps = way.partition(" ")
    if not (kernel.isdigit() and steps.isdigit()):
        return way
    return f"{f'kernel {kernel}' if int(kernel) else 'no filter'} at {steps} steps"


def tables(records: list[Json]) -> str:
    parts = [f"Adapters of {records[0]['steps']} steps, {len(records)} clips.", claims_table(claims(records))]
    for part, title in PARTS.items():
        ways = records[0][part]
        measures = {name: MEASURES[name] for name in ways[WITHOUT]}
        parts.append(f"**{title}**\n\n{means(ways, measures, partial(values, records, part), 'adapter')}")
    rows = [
        [str(kernel or "none")]
        + [shown(estimate(values(records, "inverted", f"{kernel} {n}", "psnr")), ".1f") for n in STEPS_OF_INVERSION]
        for kernel in KERNELS
    ]
    header = ["kernel", *(f"{count} steps" for count in STEPS_OF_INVERSION)]
    parts.append(f"**Inverted and drawn again: PSNR (dB), by kernel of the filter**\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def chart(records: list[Json]) -> Any:
    names = ("consistency", "fidelity")
    panels = {f"{part} {name}": (f"{part}: {MEASURES[name][0]}", "") for part in PARTS for name in names}
    return rows_chart(
        "What a GE-Adapter changes",
        f"Differences from no adapter, clip by clip: {len(records)} clips, 95% intervals. Right is better.",
        [way for way in records[0]["edited"] if way != WITHOUT],
        panels,
        {"": lambda way, panel: gain(records, panel.split()[0], way, panel.split()[1])},
        zero=True,
    )


def main() -> None:
    parser = command_line(
        __doc__,
        "minutes",
        "publish",
        clips=(12, "clips that are measured, at most"),
        trained_on=(24, "clips that the adapters are trained on"),
        frames=(4, "of a clip"),
        steps=(400, "of each training"),
    )
    others = list(VARIANTS)[1:]
    parser.add_argument("--variants", nargs="*", choices=others, default=others, help="beside the paper's own")
    arguments = parser.parse_args()
    enter(arguments)
    settings = {name: getattr(arguments, name) for name in ("frames", "steps", "trained_on", "variants")}
    kept = Records(arguments.out, settings)
    with torch.inference_mode():
        study = Study(arguments.frames, arguments.steps, arguments.trained_on, ["adapter", *arguments.variants])
        wanted = ((f"{seed:02}", partial(study.record, seed)) for seed in range(arguments.clips))
        records = list(kept.take(wanted, arguments.minutes))
    print(publish("ge_adapter_study", arguments.out, arguments.publish, tables(records), chart(records)))


if __name__ == "__main__":
    main()
