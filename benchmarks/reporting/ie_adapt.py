"""What the perturbation sweep and the studies of guidance and editing say of IE-Adapt's claims."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from editing_study import HALF
from ie_guidance_report import MEASURES as LOOKS
from ie_guidance_report import PLAIN
from perturbation_sweep import DAMAGES, MATRICES, WORSE, figures_of
from studies import Estimate
from torch import Tensor

from .findings import Claim, Findings, mean

Records = list[dict[str, Any]]
STEADY = 0.01
"""SSIM of neighbouring frames that counts as no change."""
FIRST, MIDDLE, LAST = "input.1.attn1", "middle.0.attn1", "output.3.attn1"


def sweep(results: dict[str, Any]) -> Findings:
    """One layer at a time, over all steps."""
    whole, scenes = results["results"]["all steps"], results["scenes"]
    layers = list(whole["identity"])
    claims = [_correlated(each, len(layers)) for each in results["correlations"] if _is_the_claims(each)]

    def damage(matrix: str, layer: str, name: str) -> Tensor:
        return figures_of(whole, matrix, name)[:, layers.index(layer)]

    def claim(where: str, text: str, figure: str, values: Tensor, sign: int, tolerance: float = 0.0) -> Claim:
        found = mean(values)
        return Claim(where, text, figure, found, "+.4f", scenes, sign, tolerance=tolerance, unit="prompts")

    for name in ("structure", "gradients"):
        said = DAMAGES[name]
        by_identity = figures_of(whole, "identity", name)
        ends = [layers.index(FIRST), layers.index(LAST)]
        between = [place for place in range(len(layers)) if place not in ends]
        claims += [
            claim(
                "§3.2",
                "Replaced by I, the layers at both ends of the U-Net have the largest impact on structure",
                f"{said}, both ends less all others",
                by_identity[:, ends].mean(1) - by_identity[:, between].mean(1),
                1,
            ),
            claim(
                "§3.2",
                "The final layer is the most affected",
                f"{said} by I, {LAST} less the mean of all others",
                by_identity[:, ends[1]] - by_identity[:, [*between, ends[0]]].mean(1),
                1,
            ),
            claim(
                "§3.2",
                "At both ends, U does not harm the structure as I does",
                f"{said} by I less by U, both ends",
                figures_of(whole, WORSE, name)[:, ends].mean(1),
                1,
            ),
            claim(
                "§3.2",
                "At the bottleneck it is the other way round: U harms more than I",
                f"{said} by U less by I, {MIDDLE}",
                damage("uniform", MIDDLE, name) - damage("identity", MIDDLE, name),
                1,
            ),
        ]
    flicker = torch.stack([figures_of(whole, matrix, "flicker") for matrix in MATRICES])
    return Findings(
        [
            *claims,
            claim(
                "§3.2",
                "Perturbed spatial layers have little impact on inter-frame consistency, except for the final one",
                "SSIM of neighbours lost, mean over the other layers, by I and U",
                flicker[:, :, [place for place, layer in enumerate(layers) if layer != LAST]].mean((0, 2)),
                0,
                STEADY,
            ),
            claim(
                "§3.2",
                "I in the final layer lowers inter-frame consistency sharply",
                f"SSIM of neighbours lost by I, {LAST}",
                damage("identity", LAST, "flicker"),
                1,
            ),
        ]
    )


def _is_the_claims(found: dict[str, Any]) -> bool:
    of = {"span": "all steps", "entropy": "mean", "matrix": WORSE}
    return all(found[name] == value for name, value in of.items()) and found["damage"] in ("structure", "gradients")


def _correlated(found: dict[str, Any], layers: int) -> Claim:
    """The interval has layers resampled as well as prompts: the claim is one about layers."""
    estimate = Estimate(found["rho"], *found["by_layers"])
    return Claim(
        "§3.4",
        "Maps of high entropy suffer from I rather than from U",
        f"rank correlation over layers of entropy with {DAMAGES[found['damage']]} by I less by U",
        estimate,
        "+.2f",
        layers,
        1,
        unit="layers",
    )


# Guidance ------------------------------------------------------------------------------------------------------------

QUALITIES = {"form": 1, "sharpness": 1, "grain": -1}
"""What stands in for the paper's aesthetic and imaging scores, and which way is better."""


def guidance(records: Records) -> Findings:
    """Stills of the usual setting, and clips where there are any."""

    def gain(setting: str, way: str, other: str, name: str) -> Tensor:
        ways = [record["ways"] for record in records if record["setting"] == setting]
        rows = [[a - b for a, b in zip(each[way][name], each[other][name], strict=True)] for each in ways]
        return torch.tensor(rows, dtype=torch.float64)

    def claim(where: str, text: str, setting: str, pair: tuple[str, str], name: str, sign: int) -> Claim:
        values = gain(setting, *pair, name)
        title, form = LOOKS[name]
        figure = f"{title}, {pair[0]} less {pair[1]}, {'clips' if setting != 'usual' else 'stills'}"
        return Claim(where, text, figure, mean(values), "+" + form, len(values), sign, unit="prompts")

    claims = []
    have = {record["setting"] for record in records}
    for name, sign in QUALITIES.items() if "usual" in have else ():
        for way in ("A-I", "U-A", "U-I"):
            text = f"[{way.replace('-', ' − ')}] improves the quality of the picture over plain CFG"
            claims.append(claim("table 2", text, "usual", (f"{way} λ=2", PLAIN), name, sign))
        for where, text, pair in (
            ("table 2", "[A − I] does so more than [U − I] on average", ("A-I λ=2", "U-I λ=2")),
            ("table 4", "Strategy 3 is better than strategy 2, [A − I]", ("strategy 3 λ=2", "A-I λ=2")),
            ("table 4", "Strategy 4 is better than strategy 2, [A − I]", ("strategy 4", "A-I λ=2")),
            ("table 4", "Strategy 2, [A − I], is better than strategy 1", ("A-I λ=2", "strategy 1")),
        ):
            claims.append(claim(where, text, "usual", pair, name, sign))
    for setting in sorted(have & {"clips", "video"}):
        text = "IE-Adapt’s clips are more consistent from frame to frame than plain CFG’s"
        claims.append(claim("table 1", text, setting, ("U-I λ=2", PLAIN), "ssim", 1))
    return Findings(claims)


# Editing -------------------------------------------------------------------------------------------------------------


PEERS = {
    f"key_value, {HALF}": "MasaCtrl’s replaced keys and values",
    f"value, {HALF}": "replaced values",
    "cross_map": "P2P’s replaced cross-attention",
}


def editing(results: dict[str, Any]) -> Findings:
    """Rendered and generated clips together."""
    measures, records = results["measures"], results["records"]

    def claim(where: str, text: str, pair: tuple[str, str], name: str, sign: int) -> Claim:
        one, two = (torch.tensor([record["ways"][way][name] for record in records]) for way in pair)
        title, form = measures[name]
        figure = f"{title}, {pair[0]} less {pair[1]}"
        return Claim(where, text, figure, mean(one - two), "+" + form, len(records), sign)

    claims = [
        claim(where, text, pair, name, 1)
        for where, text, pair, name in (
            ("§4.2", "Replaced maps of low entropy keep the structure", (HALF, "nothing"), "iou"),
            ("§4.2", "Maps of low entropy hold more of it than those of high", (HALF, "highest 50%"), "iou"),
            ("table 5", "The fewer are replaced, the closer to the text", ("lowest 25%", "lowest 100%"), "fidelity"),
            ("table 5", "The more are replaced, the steadier", ("lowest 100%", "lowest 25%"), "consistency"),
        )
    ]
    for (way, peer), (name, what) in product(
        PEERS.items(), (("fidelity", "closer to the text"), ("consistency", "steadier"))
    ):
        claims.append(claim("table 3", f"Replaced maps are {what} than {peer}", (HALF, way), name, 1))
    return Findings(claims)
