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

import importlib
import random
import sys
from dataclasses import dataclass
from typing import Any

import torch
from claims import Claim, Estimate, between, estimate, number, rank_correlation, shown
from figures import COLOURS, bars_of, legend, panels, publish, sheet, style, table
from harness import Demo, Json, command_line, dependency_noise, empty, enter, pack, save
from picture_metrics import gmsd
from power import worth
from torch import Tensor

NAME = "perturbation_sweep"
STEPS, CFG, SAMPLER, SCHEDULER = 8, 5.0, "dpmpp_2m", "karras"
MATRICES = ("identity", "uniform")
WORSE = "identity − uniform"
PLAIN = "unperturbed"
DAMAGES = {
    "structure": "1 − SSIM to unperturbed",
    "gradients": "GMSD to unperturbed",
    "flicker": "SSIM of neighbours lost",
    "disobedience": "share of prompt lost",
}
SPANS = {"all steps": (0.0, 1.0), "first half": (0.0, 0.5), "second half": (0.5, 1.0)}
Results = dict[str, Json]


STEADY = 0.01
"""SSIM of neighbouring frames that counts as no change."""
FIRST, MIDDLE, LAST = "input.1.attn1", "middle.0.attn1", "output.3.attn1"


@dataclass(frozen=True)
class OneAfterTheOther:
    """NOISE of several clips in one batch, each of its own."""

    noises: list[Any]
    frames: int
    seed: int = 0

    def generate_noise(self, latent: Json) -> Tensor:
        return torch.cat([each.generate_noise(empty(self.frames)) for each in self.noises])


@dataclass(frozen=True)
class World:
    """The demo model, the scenes and what sampling starts from."""

    demo: Demo
    scenes: list[Any]
    positives: list[list]
    noises: list[Any]
    frames: int

    @classmethod
    def of(cls, scenes: int, frames: int) -> World:
        demo, shapes, rng = Demo(), pack("demo.shapes"), random.Random(0)
        drawn = [shapes.random_scene(rng) for _ in range(scenes)]
        positives = [demo.encode(shapes.caption(scene, rng)) for scene in drawn]
        return cls(demo, drawn, positives, [dependency_noise(seed, 0.02) for seed in range(scenes)], frames)

    @property
    def layers(self) -> list[str]:
        selectable = pack("attention.registry").SELECTABLE
        return [site.name for site in pack("attention.sites").sites_of(self.demo.model) if site.kind in selectable]

    def sweep(self, matrix: str, span: tuple[float, float]) -> Any:
        """LayerSweep's own runs, of the clips of all scenes at once."""
        sweeping, sampler = pack("samplers.sweep"), importlib.import_module("comfy.samplers").sampler_object(SAMPLER)
        prompts = torch.cat([positive[0][0] for positive in self.positives]).repeat_interleave(self.frames, 0)
        noise = OneAfterTheOther(self.noises, self.frames)
        latent, sigmas = empty(len(self.scenes) * self.frames), self.demo.sigmas(STEPS, SCHEDULER)
        run = sweeping.Run([[prompts, {}]], self.demo.encode(""), CFG, noise, sampler, sigmas, latent)
        alpha = pack("nodes.layer_sweep").MATRICES[matrix]
        return sweeping.Sweep(self.demo.model, alpha, run, 1 + len(self.layers), "benchmark", *span)

    def clips(self, latents: Tensor) -> Tensor:
        """The clips of all scenes, (scenes, frames, 128, 128, 3) in [0, 1]."""
        return self.demo.decode(latents).unflatten(0, (-1, self.frames))

    def entropy(self, steps: list[int]) -> Tensor:
        """Mean over ``steps`` for every scene and layer, (scenes, layers) float64."""
        measuring, sigmas = pack("samplers.measure"), self.demo.sigmas(STEPS, SCHEDULER)
        rows = []
        for positive, noise in zip(self.positives, self.noises, strict=True):
            start = measuring.Start(positive, noise, sigmas, empty(self.frames))
            _, figures = measuring.measure_layers(self.demo.model, start, steps, "exact", "benchmark")
            rows.append([figures[name].entropy for name in self.layers])
        return torch.tensor(rows, dtype=torch.float64)

    def steps_in(self, span: tuple[float, float]) -> list[int]:
        """The steps at which what is between two percentages of sampling acts."""
        is_between, sigmas = pack("attention.steps").is_between, self.demo.sigmas(STEPS, SCHEDULER)
        sampling = self.demo.model.get_model_object("model_sampling")
        return [step for step in range(STEPS) if is_between(float(sigmas[step]), *span, sampling)]


def damage(clips: Tensor, plain: Tensor, scenes: list[Any]) -> dict[str, list[float]]:
    """``DAMAGES`` of every scene's clip, beside the unperturbed one."""
    luma, fidelity = torch.tensor(pack("metrics.similarity").LUMA), pack("demo.reader").fidelity
    lost = pack("metrics.damage").DAMAGES
    pairs = list(zip(clips, plain, scenes, strict=True))
    return {
        "structure": [lost["change"](a, b) for a, b, _ in pairs],
        "gradients": [float(gmsd(a @ luma, b @ luma).mean()) for a, b, _ in pairs],
        "flicker": [lost["consistency"](a, b) for a, b, _ in pairs],
        "disobedience": [float(fidelity(b, scene).mean() - fidelity(a, scene).mean()) for a, b, scene in pairs],
    }


def sweep(world: World, spans: list[str]) -> tuple[Results, dict[str, Tensor]]:
    """Entropy and damage for every span, matrix and layer; and the clips of the first scenes for the sheet."""
    results: Results = {}
    shown_clips: dict[str, Tensor] = {}
    for when in spans:
        steps = world.steps_in(SPANS[when])
        entropy = {"steps": steps, "mean": world.entropy(steps).tolist(), "first": world.entropy(steps[:1]).tolist()}
        results[when] = {"entropy": entropy, **{matrix: {} for matrix in MATRICES}}
        for matrix in MATRICES:
            runs = world.sweep(matrix, SPANS[when])
            plain = world.clips(runs.plain())
            shown_clips[PLAIN] = plain[:, 0]
            for layer in world.layers:
                clips = world.clips(runs.without(layer))
                results[when][matrix][layer] = damage(clips, plain, world.scenes)
                if when == "all steps":
                    shown_clips[f"{layer} {matrix}"] = clips[:, 0]
                print(f"{when}, {layer}, {matrix}", file=sys.stderr, flush=True)
    return results, shown_clips


# Telling -------------------------------------------------------------------------------------------------------------


def figures_of(result: Json, matrix: str, name: str) -> Tensor:
    """(scenes, layers) float64."""
    if matrix == WORSE:
        identity, uniform = (figures_of(result, each, name) for each in MATRICES)
        return identity - uniform
    return torch.tensor([each[name] for each in result[matrix].values()], dtype=torch.float64).mT


def correlations(results: Results) -> list[Json]:
    """Entropy, as the mean over the perturbed steps and at the first of them, against every damage."""
    return [
        {"span": span, "matrix": matrix, "damage": name, "entropy": when}
        | rank_correlation(torch.tensor(result["entropy"][when], dtype=torch.float64), figures_of(result, matrix, name))
        for span, result in results.items()
        for when in ("mean", "first")
        for matrix in (*MATRICES, WORSE)
        for name in DAMAGES
    ]


def layer_table(result: Json) -> str:
    """Entropy and damage of every layer, over all steps."""
    entropies = torch.tensor(result["entropy"]["mean"]).mean(0).tolist()
    header = ["layer", "entropy", *(f"{name} by {matrix[0].upper()}" for name in DAMAGES for matrix in MATRICES)]
    rows = []
    for place, layer in enumerate(result["identity"]):
        cells = [estimate(figures_of(result, matrix, name)[:, place]) for name in DAMAGES for matrix in MATRICES]
        rows.append([f"`{layer}`", f"{entropies[place]:.3f}", *(shown(each, ".3f") for each in cells)])
    return table(header, rows)


def correlation_table(found: list[Json]) -> str:
    header = ["perturbed in", "map", "damage", "entropy", "ρ", "95%, other scenes", "95%, other layers", "p (exact)"]
    rows = []
    for each in found:
        intervals = [between(*each[of], "+.2f") for of in ("by_scenes", "by_layers")]
        when = {"mean": "mean", "first": "first step"}[each["entropy"]]
        place = [each["span"], each["matrix"], each["damage"], when]
        rows.append([*place, number(each["rho"], "+.2f"), *intervals, number(each["p"], ".3f")])
    return table(header, rows)


def chart(result: Json, found: list[Json]) -> Any:
    """``found``: the correlations of ``result``, those that count first."""
    layers = list(result["identity"])
    entropies = torch.tensor(result["entropy"]["mean"]).mean(0).tolist()
    figure, grid = panels(
        "What each layer is for", "Above: damage by layer. Below: against its entropy.", 2, len(DAMAGES), (380, 330)
    )
    for column, (name, title) in zip(grid.T, DAMAGES.items(), strict=True):
        rho = {each["matrix"]: number(each["rho"], "+.2f") for each in reversed(found) if each["damage"] == name}
        style(column[0], title)
        style(column[1], f"ρ: {rho['identity']} by I, {rho['uniform']} by U", "entropy, mean over the steps")
        for index, matrix in enumerate(MATRICES):
            damages = [estimate(values) for values in figures_of(result, matrix, name).unbind(1)]
            y, bars = [each.value for each in damages], bars_of(damages)
            look = {"color": COLOURS[1 - index], "label": f"map replaced by {matrix}", "capsize": 2}
            column[0].bar([place + 0.4 * index - 0.2 for place in range(len(layers))], y, 0.38, yerr=bars, **look)
            column[1].errorbar(entropies, y, bars, fmt="o", **look)
        column[0].set_xticks(range(len(layers)), [x.removesuffix(".attn1") for x in layers], rotation=45)
    legend(figure, grid[0][0])
    return figure


def claims(results: Json) -> list[Claim]:
    """One layer at a time, over all steps."""
    whole = results["results"]["all steps"]
    layers = list(whole["identity"])
    first, middle, last = (layers.index(name) for name in (FIRST, MIDDLE, LAST))
    others = [place for place in range(len(layers)) if place not in (first, last)]

    def claim(text: str, figure: str, values: Tensor, sign: int = 1, tolerance: float = 0.0) -> Claim:
        how = {"tolerance": tolerance, "worth": worth("damage"), "unit": "prompts"}
        return Claim.of("§3.2", text, figure, values, "+.4f", sign, **how)

    found = [_correlated(each, len(layers)) for each in results["correlations"] if _is_the_claims(each)]
    for name in ("structure", "gradients"):
        said = DAMAGES[name]
        by_i, by_u = (figures_of(whole, matrix, name) for matrix in MATRICES)
        found += [
            claim(
                "Replaced by I, the layers at both ends of the U-Net have the largest impact on structure",
                f"{said}, both ends less all others",
                by_i[:, [first, last]].mean(1) - by_i[:, others].mean(1),
            ),
            claim(
                "The final layer is the most affected",
                f"{said} by I, {LAST} less the mean of all others",
                by_i[:, last] - by_i[:, [*others, first]].mean(1),
            ),
            claim(
                "At both ends, U does not harm the structure as I does",
                f"{said} by I less by U, both ends",
                (by_i - by_u)[:, [first, last]].mean(1),
            ),
            claim(
                "At the bottleneck it is the other way round: U harms more than I",
                f"{said} by U less by I, {MIDDLE}",
                (by_u - by_i)[:, middle],
            ),
        ]
    flicker = torch.stack([figures_of(whole, matrix, "flicker") for matrix in MATRICES])
    return [
        *found,
        claim(
            "Perturbed spatial layers have little impact on inter-frame consistency, except for the final one",
            "SSIM of neighbours lost, mean over the other layers, by I and U",
            flicker[:, :, [place for place in range(len(layers)) if place != last]].mean((0, 2)),
            0,
            STEADY,
        ),
        claim(
            "I in the final layer lowers inter-frame consistency sharply",
            f"SSIM of neighbours lost by I, {LAST}",
            flicker[0, :, last],
        ),
    ]


def _is_the_claims(found: Json) -> bool:
    of = {"span": "all steps", "entropy": "mean", "matrix": WORSE}
    return all(found[name] == value for name, value in of.items()) and found["damage"] in ("structure", "gradients")


def _correlated(found: Json, layers: int) -> Claim:
    """The interval has layers resampled as well as prompts: the claim is one about layers."""
    return Claim(
        "§3.4",
        "Maps of high entropy suffer from I rather than from U",
        f"rank correlation over layers of entropy with {DAMAGES[found['damage']]} by I less by U",
        Estimate(found["rho"], *found["by_layers"]),
        "+.2f",
        layers,
        1,
        unit="layers",
        worth=worth("rank"),
    )


def main() -> None:
    parser = command_line(
        __doc__, "publish", scenes=(16, "prompts, each with its own noise"), frames=(3, "of each clip")
    )
    parser.add_argument("--halves", action="store_true", help="perturb each half of the sampling by itself, too")
    arguments = parser.parse_args()
    enter(arguments)
    with torch.inference_mode():
        world = World.of(arguments.scenes, arguments.frames)
        results, pictures = sweep(world, list(SPANS) if arguments.halves else ["all steps"])
    found, whole, layers = correlations(results), results["all steps"], world.layers
    save(arguments.out, {"results": results, "correlations": found})
    blocks = [
        (
            f"scene {scene + 1}",
            {m: [pictures[w][scene] for w in (PLAIN, *(f"{x} {m}" for x in layers))] for m in MATRICES},
        )
        for scene in range(min(2, arguments.scenes))
    ]
    shown_layers = [PLAIN, *(layer.removesuffix(".attn1") for layer in layers)]
    text, brief = (
        f"{layer_table(whole)}\n\n{correlation_table(those)}"
        for those in (found, [each for each in found if each["entropy"] == "mean"])
    )
    contact = sheet(blocks, shown_layers, side=112)
    print(publish(NAME, arguments.out, arguments.publish, text, chart(whole, found), contact, brief))


if __name__ == "__main__":
    main()
