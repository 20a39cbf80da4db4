"""GE-Adapter at toy scale: what the adapter adds to ZS²-sampled and to edited clips, part by part.

    python benchmarks/ge_adapter_study.py --comfyui DIR [--clips 12] [--steps 400] [--minutes 60] [--publish]

Adapters are trained on rendered clips that are not measured: as the paper has it; without shared tokens; without
per-frame tokens; without the temporal loss; with the temporal loss a thousand times as heavy, as on this model the
paper's weight leaves next to nothing of it; and from other timesteps on (the paper's Fig. 11). An untrained one, whose
LoRA is nothing, says what tokens do by being there. Each is then put on the same clips: *sampled* with ZS² from a
prompt, and *edited*, rendered clips that were inverted and drawn anew. A last part inverts with the bilateral filter,
by kernel size and steps (the paper's Fig. 5).

The demo model has no CLIP vision model, and none is fetched: per-frame tokens come from ComfyUI's CLIP vision classes
with random weights, whose hidden states still tell pictures apart. Sampled clips have no frames to show: they get the
shared tokens alone.

``--minutes`` ends the measuring after a whole clip; trainings are never cut short. Run it with the Python of that
ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from editing_study import CFG, HALF, KL, TEMPLATE, Bench, Clip, measure
from ge_adapter_report import INFERENCE, KERNELS, STEPS_OF_INVERSION, summarise, tables, write
from studies import PICTURES, enter_comfyui, pack
from torch import Tensor
from torch.nn import functional as F

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
            began = time.monotonic()
            done = training.train_adapter(self.bench.model, clips, settings)
            adapters[name] = done.adapter
            print(f"trained: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return adapters | {"untrained": self._untrained(adapters["adapter"])}

    def _untrained(self, trained: Any) -> Any:
        """The adapter that the training of ``trained`` began with."""
        begin, about = pack("training.ge_adapter").untrained, trained.training
        shared, seed = len(trained.shared_tokens), int(about.options["seed"])
        return begin(
            self.bench.model.model,
            about.layers,
            trained.rank,
            shared,
            trained.text_width,
            trained.vision_width,
            self.frames,
            seed,
        )

    def _rendered(self, seed: int) -> Any:
        shapes, rng = pack("demo.shapes"), random.Random(seed)
        drawn, scene = self.bench.render(shapes.random_scene(rng), rng, seed)
        return argparse.Namespace(frames=drawn.frames, prompt=shapes.fill(TEMPLATE, scene, random.Random(0)))

    def with_adapter(self, adapter: Any, end_percent: float, frames: Tensor | None) -> tuple[Any, Any]:
        """The model with the LoRA, and what puts tokens before a conditioning; both plain without an adapter."""
        if adapter is None:
            return self.bench.model, lambda conditioning: conditioning
        hidden = None if frames is None or adapter.projection is None else self.vision(frames)
        add = pack("training.token_conditioning").with_tokens
        model = pack("samplers.lora_steps").with_lora(
            self.bench.model, adapter.lora, STRENGTH, 0.0, end_percent, "study"
        )
        return model, lambda conditioning: add(conditioning, adapter, hidden)

    def sampled(self, clip: Clip, adapter: Any, end_percent: float) -> dict[str, float]:
        """ZS² from the target's prompt."""
        from comfy.samplers import CFGGuider

        model, tokens = self.with_adapter(adapter, end_percent, None)
        model = pack("nodes.momentum").TemporalMomentumAttention.execute(model, MU).args[0]
        (noise,) = (
            pack("nodes.noise").DependencyNoise.execute(clip.seed, KL, "", "generalised", "bisection", 10, 15).args
        )
        latent = torch.zeros(self.frames, 4, 16, 16)
        guider = CFGGuider(model)
        guider.set_conds(tokens(self.bench.encode(clip.prompts[1])), tokens(self.bench.encode("")))
        guider.set_cfg(CFG)
        drawn = guider.sample(
            noise.generate_noise({"samples": latent}), latent, self.bench.sampler, self.bench.sigmas, disable_pbar=True
        )
        frames = self.bench.decode(drawn)
        reader = pack("demo.reader")
        correct = reader.correct(reader.read(frames), clip.target)
        return {
            "fidelity": torch.stack(list(correct.values())).float().mean().item(),
            "consistency": pack("metrics.similarity").ssim(frames[1:], frames[:-1]).mean().item(),
        }

    def edited(self, clip: Clip, adapter: Any, end_percent: float, way: dict[str, str]) -> dict[str, float]:
        editing = pack("samplers.editing")
        model, tokens = self.with_adapter(adapter, end_percent, clip.frames)
        prompts = editing.Prompts(*(tokens(self.bench.encode(prompt)) for prompt in (*clip.prompts, "")))
        edit = editing.Edit(cfg=CFG, source_cfg=clip.source_cfg, **way)
        run = (clip.noise, self.bench.sampler, self.bench.sigmas, clip.latent)
        target, _ = editing.sample_edit(model, prompts, edit, *run, "study")
        return measure(self.bench.decode(target), clip)

    def inverted(self, clip: Clip) -> dict[str, dict[str, float]]:
        """What comes back of the clip from an inversion with the paper's filter, by kernel and steps."""
        import comfy.samplers

        inversion, similarity = pack("samplers.inversion"), pack("metrics.similarity")
        sampling = self.bench.model.get_model_object("model_sampling")
        clean = self.bench.vae.encode(clip.frames)
        best, text, figures = self.bench.decode(clean), self.bench.encode(clip.prompts[0]), {}
        for kernel, steps in product(KERNELS, STEPS_OF_INVERSION):
            sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", steps)
            how = inversion.Inversion(mode="latent_spatial" if kernel else "none", kernel_size=kernel or 3)
            start, _ = inversion.invert_latent(
                self.bench.model, text, None, 1.0, {"samples": clean}, sigmas, how, 0, "study"
            )
            guider = comfy.samplers.CFGGuider(self.bench.model)
            guider.inner_set_conds({"positive": text})
            drawn = guider.sample(torch.zeros_like(start), start, self.bench.sampler, sigmas, disable_pbar=True)
            frames = self.bench.decode(drawn)
            figures[f"{kernel} {steps}"] = {
                "psnr": similarity.psnr(frames, best).mean().item(),
                "consistency": similarity.ssim(frames[1:], frames[:-1]).mean().item(),
            }
        return figures

    def record(self, seed: int, adapters: dict[str, Any]) -> dict[str, Any]:
        """All figures of one clip."""
        clip = self.bench.clip("rendered", seed)
        way = next(way for name, way in self.bench.ways(clip) if name == HALF)
        ways = {"without": (None, 0.1)}
        for name, adapter in adapters.items():
            grid = name == "adapter" or name.startswith("trained from")
            for start in INFERENCE if grid else INFERENCE[-1:]:
                ways[f"{name}, on {start} to 1"] = (adapter, round(1 - start, 3))
        return {
            "seed": seed,
            "sampled": {name: self.sampled(clip, *how) for name, how in ways.items()},
            "edited": {name: self.edited(clip, *how, way) for name, how in ways.items()},
            "inverted": self.inverted(clip),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--clips", type=int, default=12, help="clips that are measured, at most")
    parser.add_argument("--trained-on", type=int, default=24, help="clips that the adapters are trained on")
    parser.add_argument("--frames", type=int, default=4)
    others = list(VARIANTS)[1:]
    parser.add_argument("--variants", nargs="*", choices=others, default=others, help="beside the paper's own")
    parser.add_argument("--steps", type=int, default=400, help="steps of each training")
    parser.add_argument("--minutes", type=float, default=60.0, help="measure no further clip after so long")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write all figures here, after every clip")
    parser.add_argument("--out", type=Path, help="write chart and tables to this folder")
    parser.add_argument("--publish", action="store_true", help="write chart and tables to web/docs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enter_comfyui(arguments.comfyui.resolve())
    began, records = time.monotonic(), []
    with torch.inference_mode():
        study = Study(arguments.frames, arguments.steps, arguments.trained_on, ["adapter", *arguments.variants])
        adapters = study.adapters()
        for seed in range(arguments.clips):
            if records and time.monotonic() - began > 60 * arguments.minutes:
                break
            records.append(study.record(seed, adapters))
            print(f"clip {seed + 1}/{arguments.clips}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({"steps": arguments.steps, "records": records}, indent=1))
    summary = summarise(records)
    print(tables(summary, arguments.steps))
    for folder in [arguments.out] * bool(arguments.out) + [PICTURES] * arguments.publish:
        write(folder, summary, arguments.steps)


if __name__ == "__main__":
    main()
