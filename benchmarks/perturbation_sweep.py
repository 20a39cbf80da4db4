"""What each self-attention layer is for: IE-Adapt's perturbation analysis (§3, Figs. 1 and 2) on the demo model.

    python benchmarks/perturbation_sweep.py --comfyui DIR --out FOLDER [--scenes 16] [--halves] [--publish]

Every layer's map is replaced by the identity I and by the uniform map U, one layer at a time, and clips of the same
prompts and noise are drawn again. How far are they off the unperturbed ones, and does that go with the layer's entropy?
The paper says that maps of high entropy suffer from I and hardly from U, and those of low entropy hold the structure.
"identity − uniform" is that claim in one figure: how much worse I is than U.
The demo model has seven self-attention layers, few for a rank correlation: its exact p-value says how few.
``--halves`` perturbs each half of the sampling by itself, too.

Damage, larger for worse: structure, 1 − SSIM to the unperturbed frame; gradients, GMSD to it (Xue et al. 2014; no
network, so not the paper's LPIPS); flicker, by how much the SSIM of neighbouring frames falls; disobedience, by how
much the share of the prompt falls that the frames show. Intervals: 95%, bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from picture_metrics import gmsd
from PIL import Image, ImageDraw
from studies import (
    COLOURS,
    PICTURES,
    between,
    bootstrap,
    enter_comfyui,
    font,
    markdown,
    number,
    pack,
    rank_correlation,
    shown,
    slim,
)
from torch import Tensor

NAME = "perturbation_sweep"
STEPS, CFG, SAMPLER, SCHEDULER = 8, 5.0, "dpmpp_2m", "karras"
MATRICES = ("identity", "uniform")
WORSE = "identity − uniform"
COLOUR_OF = dict(zip(MATRICES, COLOURS[1::-1], strict=True))
DAMAGES = {
    "structure": "1 − SSIM to unperturbed",
    "gradients": "GMSD to unperturbed",
    "flicker": "SSIM of neighbours lost",
    "disobedience": "share of prompt lost",
}
SPANS = {"all steps": (0.0, 1.0), "first half": (0.0, 0.5), "second half": (0.5, 1.0)}
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class World:
    """The demo model, the scenes and what sampling starts from."""

    model: Any
    vae: Any
    scenes: list[Any]
    positives: list[list]
    negative: list
    noises: list[Any]
    frames: int

    @classmethod
    def of(cls, scenes: int, frames: int) -> World:
        loader, shapes = pack("demo.model"), pack("demo.shapes")
        text = loader.load_clip()
        rng = random.Random(0)
        drawn = [shapes.random_scene(rng) for _ in range(scenes)]
        prompts = [shapes.caption(scene, rng) for scene in drawn]
        *positives, negative = [text.encode_from_tokens_scheduled(text.tokenize(words)) for words in (*prompts, "")]
        search = ("", "generalised", "bisection", 10, 15)
        noises = [pack("nodes.noise").DependencyNoise.execute(seed, 0.02, *search).args[0] for seed in range(scenes)]
        return cls(loader.load_model(), loader.load_vae(), drawn, positives, negative, noises, frames)

    @property
    def latent(self) -> dict[str, Tensor]:
        """Of one clip."""
        return {"samples": torch.zeros(self.frames, 4, 16, 16)}

    @property
    def sigmas(self) -> Tensor:
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), SCHEDULER, STEPS)

    @property
    def layers(self) -> list[str]:
        selectable = pack("attention.registry").SELECTABLE
        return [site.name for site in pack("attention.sites").sites_of(self.model) if site.kind in selectable]

    def draw(self, model: Any) -> Tensor:
        """The clips of all scenes, (scenes, frames, 128, 128, 3) in [0, 1]."""
        import comfy.sample

        noise = torch.cat([each.generate_noise(self.latent) for each in self.noises])
        prompts = torch.cat([positive[0][0] for positive in self.positives])
        latents = comfy.sample.sample(
            model,
            noise,
            STEPS,
            CFG,
            SAMPLER,
            SCHEDULER,
            [[prompts.repeat_interleave(self.frames, 0), {}]],
            self.negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
        return self.vae.decode(latents).float().cpu().clamp(0, 1).unflatten(0, (-1, self.frames))

    def entropy(self, steps: list[int]) -> Tensor:
        """Mean over ``steps`` for every scene and layer, (scenes, layers) float64."""
        measuring = pack("samplers.measure")
        rows = []
        for positive, noise in zip(self.positives, self.noises, strict=True):
            start = measuring.Start(positive, noise, self.sigmas, self.latent)
            _, figures = measuring.measure_layers(self.model, start, steps, "exact", "benchmark")
            rows.append([figures[name].entropy for name in self.layers])
        return torch.tensor(rows, dtype=torch.float64)

    def steps_in(self, span: tuple[float, float]) -> list[int]:
        """The steps at which what is between two percentages of sampling acts."""
        is_between = pack("attention.steps").is_between
        sampling = self.model.get_model_object("model_sampling")
        return [step for step in range(STEPS) if is_between(float(self.sigmas[step]), *span, sampling)]


def looks(clips: Tensor, scenes: list[Any]) -> dict[str, Tensor]:
    """What each clip of (scenes, frames, ...) shows by itself, (scenes,)."""
    ssim, reader = pack("metrics.similarity").ssim, pack("demo.reader")
    neighbours = [ssim(clip[1:], clip[:-1]).mean() for clip in clips]
    obeys = [reader.fidelity(clip, scene).mean() for clip, scene in zip(clips, scenes, strict=True)]
    return {"neighbours": torch.stack(neighbours), "obeys": torch.stack(obeys)}


def damage(clips: Tensor, plain: Tensor, scenes: list[Any]) -> dict[str, list[float]]:
    """``DAMAGES`` of every scene's clip, beside the unperturbed one."""
    similarity = pack("metrics.similarity")
    luma = torch.tensor(similarity.LUMA)
    now, before = looks(clips, scenes), looks(plain, scenes)
    pairs = list(zip(clips, plain, strict=True))
    figures = {
        "structure": torch.stack([1 - similarity.ssim(*pair).mean() for pair in pairs]),
        "gradients": torch.stack([gmsd(a @ luma, b @ luma).mean() for a, b in pairs]),
        "flicker": before["neighbours"] - now["neighbours"],
        "disobedience": before["obeys"] - now["obeys"],
    }
    return {name: values.tolist() for name, values in figures.items()}


def sweep(world: World, spans: list[str]) -> tuple[Results, dict[str, Tensor]]:
    """Entropy and damage for every span, matrix and layer; and the clips of the first scenes for the sheet."""
    perturb, select = pack("nodes.perturbation").PerturbAttention, pack("nodes.entropy_register").SelectAttentionLayers
    plain = world.draw(world.model)
    shown_clips = {"unperturbed": plain[:, 0]}
    results: Results = {}
    for when in spans:
        steps = world.steps_in(SPANS[when])
        entropy = {"steps": steps, "mean": world.entropy(steps).tolist(), "first": world.entropy(steps[:1]).tolist()}
        results[when] = {"entropy": entropy, **{matrix: {} for matrix in MATRICES}}
        for layer in world.layers:
            (registry,) = select.execute(world.model, layer).args
            for matrix in MATRICES:
                (model,) = perturb.execute(world.model, registry, matrix, 0.5, *SPANS[when]).args
                clips = world.draw(model)
                results[when][matrix][layer] = damage(clips, plain, world.scenes)
                if when == "all steps":
                    shown_clips[f"{layer} {matrix}"] = clips[:, 0]
                print(f"{when}, {layer}, {matrix}", file=sys.stderr, flush=True)
    return results, shown_clips


# Telling -------------------------------------------------------------------------------------------------------------


def figures_of(result: dict[str, Any], matrix: str, name: str) -> Tensor:
    """(scenes, layers) float64."""
    if matrix == WORSE:
        identity, uniform = (figures_of(result, each, name) for each in MATRICES)
        return identity - uniform
    return torch.tensor([each[name] for each in result[matrix].values()], dtype=torch.float64).mT


def correlations(results: Results) -> list[dict[str, Any]]:
    """Entropy, as the mean over the perturbed steps and at the first of them, against every damage."""
    return [
        {"span": span, "matrix": matrix, "damage": name, "entropy": when}
        | rank_correlation(torch.tensor(result["entropy"][when], dtype=torch.float64), figures_of(result, matrix, name))
        for span, result in results.items()
        for when in ("mean", "first")
        for matrix in (*MATRICES, WORSE)
        for name in DAMAGES
    ]


def layer_table(result: dict[str, Any]) -> str:
    """Entropy and damage of every layer, over all steps."""
    entropies = torch.tensor(result["entropy"]["mean"]).mean(0).tolist()
    header = ["layer", "entropy", *(f"{name} by {matrix[0].upper()}" for name in DAMAGES for matrix in MATRICES)]
    rows = []
    for place, layer in enumerate(result["identity"]):
        cells = [bootstrap(figures_of(result, matrix, name)[:, place]) for name in DAMAGES for matrix in MATRICES]
        rows.append([f"`{layer}`", f"{entropies[place]:.3f}", *(shown(each, ".3f") for each in cells)])
    return markdown(header, rows)


def correlation_table(found: list[dict[str, Any]]) -> str:
    header = ["perturbed in", "map", "damage", "entropy", "ρ", "95%, other scenes", "95%, other layers", "p (exact)"]
    rows = []
    for each in found:
        intervals = [between(*each[of], "+.2f") for of in ("by_scenes", "by_layers")]
        when = {"mean": "mean", "first": "first step"}[each["entropy"]]
        place = [each["span"], each["matrix"], each["damage"], when]
        rows.append([*place, number(each["rho"], "+.2f"), *intervals, number(each["p"], ".3f")])
    return markdown(header, rows)


def chart(result: dict[str, Any], found: list[dict[str, Any]]) -> Any:
    """Damage by layer, and against entropy. ``found``: the correlations of ``result``, those that count first."""
    from matplotlib.figure import Figure

    layers = list(result["identity"])
    entropies = torch.tensor(result["entropy"]["mean"]).mean(0).tolist()
    figure = Figure(figsize=(14, 6), layout="constrained")
    grid = figure.subplots(2, len(DAMAGES))
    for column, (name, title) in zip(grid.T, DAMAGES.items(), strict=True):
        for index, matrix in enumerate(MATRICES):
            estimates = [bootstrap(values) for values in figures_of(result, matrix, name).unbind(1)]
            y = [each.value for each in estimates]
            bars = [[each.value - each.low for each in estimates], [each.high - each.value for each in estimates]]
            places = [place + 0.4 * index - 0.2 for place in range(len(layers))]
            style = {"color": COLOUR_OF[matrix], "label": matrix}
            column[0].bar(places, y, 0.38, yerr=bars, capsize=2, **style)
            column[1].errorbar(entropies, y, bars, fmt="o", capsize=2, **style)
        column[0].set_xticks(range(len(layers)), [x.removesuffix(".attn1") for x in layers], rotation=45, fontsize=8)
        column[0].set_title(title, fontsize=10)
        rho = {each["matrix"]: number(each["rho"], "+.2f") for each in reversed(found) if each["damage"] == name}
        column[1].set_title(f"ρ: {rho['identity']} by identity, {rho['uniform']} by uniform", fontsize=10)
        column[1].set_xlabel("entropy of the map, mean over the steps")
    grid[0][0].legend(title="map replaced by", frameon=False)
    return figure


def contact_sheet(pictures: dict[str, Tensor], layers: list[str], scenes: int = 2) -> Image.Image:
    """For the first scenes: unperturbed, then every layer, by I above and by U below."""
    side, gap, band, label = 112, 3, 22, 70
    sheet = Image.new("RGB", (label + (1 + len(layers)) * (side + gap), band + scenes * 2 * (side + gap)), "white")
    pen, ink = ImageDraw.Draw(sheet), "#1f2933"
    for column, layer in enumerate(["unperturbed", *layers]):
        pen.text((label + column * (side + gap), 4), layer.removesuffix(".attn1"), fill=ink, font=font(12))
    for row in range(2 * scenes):
        scene, matrix = row // 2, MATRICES[row % 2]
        top = band + row * (side + gap)
        pen.text((4, top + side // 2 - 8), matrix, fill=COLOUR_OF[matrix], font=font(12))
        shown_here = [pictures["unperturbed"], *(pictures[f"{layer} {matrix}"] for layer in layers)]
        for column, each in enumerate(shown_here):
            picture = Image.fromarray((each[scene] * 255).round().byte().numpy()).resize((side, side))
            sheet.paste(picture, (label + column * (side + gap), top))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, chart and contact sheet")
    parser.add_argument("--scenes", type=int, default=16, help="prompts, each with its own noise")
    parser.add_argument("--frames", type=int, default=3, help="frames of each clip")
    parser.add_argument("--halves", action="store_true", help="perturb each half of the sampling by itself, too")
    parser.add_argument("--publish", action="store_true", help="write the documentation's table and pictures")
    arguments = parser.parse_args()
    enter_comfyui(arguments.comfyui.resolve())
    with torch.inference_mode():
        world = World.of(arguments.scenes, arguments.frames)
        results, pictures = sweep(world, list(SPANS) if arguments.halves else ["all steps"])
    found = correlations(results)
    whole = results["all steps"]
    brief = "\n\n".join([layer_table(whole), correlation_table([x for x in found if x["entropy"] == "mean"])])
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = {"scenes": arguments.scenes, "frames": arguments.frames, "results": results, "correlations": found}
    (arguments.out / f"{NAME}.json").write_text(json.dumps(figures, indent=1), "utf-8")
    (arguments.out / f"{NAME}.md").write_text(f"{layer_table(whole)}\n\n{correlation_table(found)}\n", "utf-8")
    for folder, dpi in [(arguments.out, 110)] + [(PICTURES, 80)] * arguments.publish:
        chart(whole, found).savefig(folder / f"{NAME}.png", dpi=dpi)
        slim(folder / f"{NAME}.png")
        contact_sheet(pictures, world.layers).save(folder / f"{NAME}.jpg", quality=88, optimize=True)
    if arguments.publish:
        (PICTURES / f"{NAME}.md").write_text(brief + "\n", "utf-8")
    print(brief)


if __name__ == "__main__":
    main()
