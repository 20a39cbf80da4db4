"""What the benchmarks say of costs: measured beside theory and peers, as ratios wherever that says more."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from guidance import PAG
from inversion import TARGET
from studies import Estimate, resamples, shown

from .findings import Cost, Findings, mean


def middle(values: list[float]) -> Estimate:
    """The median and its 95% bootstrap interval."""
    drawn = torch.tensor(values, dtype=torch.float64)
    medians = drawn[resamples(len(drawn))].quantile(0.5, dim=1)
    bounds = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(median(values), *bounds.tolist())


def noise(results: dict[str, Any]) -> Findings:
    """The dependency noise, of the plain noises that its search draws."""
    plain, rounds = results["plain"], results["rounds"]
    ratios = {name: middle([each[name] / each[plain] for each in rounds]) for name in rounds[0] if name != plain}
    costs = []
    for name, found in ratios.items():
        theory = "1, drawing alone" if "all frames" in name else "at most 3, our target"
        costs.append(Cost(f"Dependency noise, {name}, of {plain}", shown(found, ".2f"), theory))
    return Findings(costs=costs)


def entropy(results: dict[str, Any]) -> Findings:
    """Exact entropy of attention, of one plain attention call, for the largest size."""
    rows = [row for row in results["results"] if row["device"] == "cpu"]
    tokens = max(row["tokens"] for row in rows)
    by = {row["method"]: row for row in rows if row["tokens"] == tokens}
    ours, naive, plain = by["ours"], by["naive"], by["plain"]
    return Findings(
        costs=[
            Cost(
                f"Exact entropy of {tokens} tokens’ attention, of one plain attention call",
                f"{ours['relative_time']:.2f}",
                "1, one further call",
                f"by the map itself {naive['relative_time']:.2f}",
            ),
            Cost(
                f"Its peak memory, {tokens} tokens",
                f"{ours['peak_mib']:.0f} MiB",
                f"as plain attention, {plain['peak_mib']:.0f} MiB",
                f"by the map itself {naive['peak_mib']:.0f} MiB",
            ),
            Cost("Its distance from the entropy of the map", f"{ours['difference_from_naive']:.0e}", "0"),
        ]
    )


def guided(results: dict[str, Any]) -> Findings:
    """A guided step, of one of plain CFG."""
    costs = []
    for row in results["results"]:
        ways = row["ways"]
        for way in ("[A−I]", "[U−I]"):
            costs.append(
                Cost(
                    f"{way.replace('−', ' − ')} at {row['layer']} of the {row['model']}, of plain CFG",
                    f"{ways[way]['ratio']:.2f}",
                    f"{ways[way]['theory']:.2f}",
                    f"ComfyUI’s PAG {ways[PAG]['ratio']:.2f}" if way == "[A−I]" else "",
                )
            )
    return Findings(costs=costs)


def chunks(results: dict[str, Any]) -> Findings:
    """A long clip in chunks of frames."""
    whole, *others = results["chunks"]
    costs = [
        Cost(
            f"Memory of {whole['length']} frames in chunks of {each['length']}, of a clip of {each['length']}",
            f"{each['memory'] / each['short']:.2f}",
            "1",
            f"all frames at once {whole['memory'] / each['short']:.2f}",
        )
        for each in others
    ]
    longest = others[-1]
    costs.append(
        Cost(
            f"Time of {whole['length']} frames in chunks of {longest['length']}, of all at once",
            f"{longest['seconds'] / whole['seconds']:.2f}",
            "1",
        )
    )
    return Findings(costs=costs)


def edits(results: list[dict[str, float]]) -> Findings:
    """Memory of an edit."""
    longest = results[-1]
    return Findings(
        costs=[
            Cost(
                f"Memory of an edit of {longest['frames']} frames, of plain sampling of both clips",
                f"{longest['edit'] / longest['plain']:.2f}",
                "1, no map is stored",
            )
        ]
    )


def inversion(results: dict[str, Any]) -> Findings:
    """The bilateral filter beside kornia's, and the round trip."""
    costs = []
    for latent in dict.fromkeys(row["latent"] for row in results["filters"]):
        by = {row["filter"]: row for row in results["filters"] if row["latent"] == latent}
        mine, kornia, unfolding = by["ours"], by["kornia"], by["kornia, unfolding"]
        costs += [
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
        found = [trip["against_vae"] for trip in results["trips"] if trip["way"] == way]
        goal = f"at least {TARGET:g}, our target" if steps == 25 else ""
        what = f"Round trip of rendered clips ({len(found)}), {steps} steps, 3 refinements: PSNR in dB"
        costs.append(Cost(what, shown(mean(torch.tensor(found)), ".1f"), goal))
    return Findings(costs=costs)
