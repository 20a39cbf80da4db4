"""What the figures of :mod:`zs2_compare` and :mod:`zs2_study` say of ZS²'s claims, and of its costs."""

from __future__ import annotations

from typing import Any

import torch
import zs2_report
from studies import shown
from zs2_compare import BASELINE, OURS
from zs2_design import ATTENTIONS, CLAIMS
from zs2_design import Claim as Designed

from .findings import Claim, Cost, Findings, mean

ALIGNED = 0.02
"""Of what a prompt says, the share that may differ while clips count as equally aligned with it."""
NEGLIGIBLE = 0.1
"""Of a step's time."""


def compare(results: dict[str, Any]) -> Findings:
    """ZS² beside frames that are drawn independently; a scene's two prompts are taken together."""

    def gain(measure: str) -> torch.Tensor:
        kinds = [
            [ours[measure] - plain[measure] for ours, plain in zip(ways[OURS], ways[BASELINE], strict=True)]
            for ways in results["clips"].values()
        ]
        return torch.tensor(kinds, dtype=torch.float64).mT

    ssim, fidelity = gain("ssim"), gain("fidelity")
    return Findings(
        [
            Claim(
                "abstract",
                "ZS² samples coherent clips from an image model, without training",
                "SSIM of neighbouring frames, less that of plain sampling",
                mean(ssim),
                "+.3f",
                len(ssim),
                1,
            ),
            Claim(
                "table 1",
                "ZS²'s clips are as close to the prompt as images of plain sampling",
                "share of the prompt that the frames show, less that of plain sampling",
                mean(fidelity),
                "+.1%",
                len(fidelity),
                0,
                tolerance=ALIGNED,
            ),
        ]
    )


def study(records: list[dict[str, Any]]) -> Findings:
    """All of :data:`zs2_design.CLAIMS` whose ways were drawn."""
    drawn = {record["way"] for record in records}
    asked = [claim for claim in CLAIMS if {way.name for way in (claim.way, claim.other) if way} <= drawn]
    return Findings([_claim(each, records) for each in asked])


def _claim(designed: Designed, records: list[dict[str, Any]]) -> Claim:
    where, _, text = designed.text.rpartition(": ")
    text = text.replace("(", "", 1).replace(")", "", 1)
    text = text[:1].upper() + text[1:] if text[:1].isascii() else text
    name, _, change = designed.measure.partition(" ")
    title, form = zs2_report.MEASURES[name]
    title = {"obeys": "share of the prompt that is obeyed"}.get(name, title)
    figure = f"{'change of ' if change else ''}{title}, {designed.way.name}"
    figure += f", less {designed.other.name}" if designed.other else ""
    gain = zs2_report.gain(designed, records)
    gain = gain[~gain.isnan()]
    found = mean(gain)
    return Claim(where, text, figure, found, "+" + form, len(gain), designed.sign, is_papers=bool(designed.sign))


def step_costs(taken: dict[str, dict[str, list[float]]]) -> Findings:
    """Of a sampling step with each attention; the longest clip speaks for the claim."""
    ratios = zs2_report.cost(taken)
    costs = [
        Cost(
            f"Step with {ATTENTIONS['momentum']} attention, {clip}, of one with self-attention",
            shown(names[ATTENTIONS["momentum"]], ".3f"),
            "1 + what a running mean of keys takes",
            "; ".join(
                f"{ATTENTIONS[key]} {names[ATTENTIONS[key]].value:.3f}" for key in ("first", "first_and_previous")
            ),
        )
        for clip, names in ratios.items()
    ]
    clip, names = list(ratios.items())[-1]
    rounds = len(next(iter(taken[clip].values())))
    claim = Claim(
        "§1",
        "ZS² “incurs negligible additional computational overhead”",
        f"time of a step with momentum, of one with self-attention, {clip}",
        names[ATTENTIONS["momentum"]],
        ".3f",
        rounds,
        0,
        beside=1.0,
        tolerance=NEGLIGIBLE,
        unit="rounds",
    )
    return Findings([claim], costs)
