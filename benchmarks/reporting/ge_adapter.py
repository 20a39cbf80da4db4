"""What the study of GE-Adapter says of its claims."""

from __future__ import annotations

from typing import Any

import torch
from ge_adapter_report import KERNELS, MEASURES, PARTS, STEPS_OF_INVERSION
from torch import Tensor

from .findings import Claim, Findings, mean

OURS, WITHOUT = "adapter, on 0.9 to 1", "without"
"""The paper's setting, and none."""
LEVEL = 5
"""The paper's kernel."""
INVERTED = {"psnr": ("PSNR of the clip drawn again (dB)", ".1f"), "consistency": MEASURES["consistency"]}


def study(results: dict[str, Any]) -> Findings:
    """Sampled, edited and inverted clips."""
    records = results["records"]
    steps = f"adapters of {results['steps']} steps"

    def values(part: str, way: str, name: str) -> Tensor:
        return torch.tensor([record[part][way][name] for record in records], dtype=torch.float64)

    def claim(where: str, text: str, part: str, way: str, other: str, name: str) -> Claim:
        gain = values(part, way, name) - values(part, other, name)
        title, form = (INVERTED if part == "inverted" else MEASURES)[name]
        about = f"{part} clips, {steps}" if part in PARTS else "rendered clips"
        figure = f"{title}, “{_named(way)}” less “{_named(other)}”; {about}"
        return Claim(where, text, figure, mean(gain), "+" + form, len(gain), 1)

    claims = []
    for part in PARTS:
        claims += [
            claim("abstract, table 1", "The adapter makes clips more consistent", part, OURS, WITHOUT, "consistency"),
            claim("abstract, table 1", "The adapter brings clips closer to the text", part, OURS, WITHOUT, "fidelity"),
        ]
    there = records[0]["edited"].keys()
    for variant, where, text, name in (
        ("no shared tokens", "appendix A", "Shared tokens keep the meaning: without them it suffers", "fidelity"),
        ("no per-frame tokens", "§3.3", "Per-frame tokens keep frames consistent", "consistency"),
        ("no temporal loss", "§3.2", "The temporal loss makes frames more consistent", "consistency"),
    ):
        without = f"{variant}, on 0.9 to 1"
        if without in there:
            claims.append(claim(where, text, "edited", OURS, without, name))
    for name in ("fidelity", "consistency"):
        text = "Put on from 0.5 of the noise levels it measures better than from 0.9"
        claims.append(claim("figure 11", text, "edited", "adapter, on 0.5 to 1", OURS, name))
    few, many = STEPS_OF_INVERSION[0], STEPS_OF_INVERSION[-1]
    for count, about in ((few, "at few steps above all"), (many, "and at more")):
        for name in INVERTED:
            text = f"Inversion with the bilateral filter is better than without, {about}"
            claims.append(claim("table 2, figure 5", text, "inverted", f"{LEVEL} {count}", f"0 {count}", name))
    text = "A larger kernel raises the PSNR"
    claims.append(claim("figure 5", text, "inverted", f"{KERNELS[-1]} {few}", f"{KERNELS[1]} {few}", "psnr"))
    return Findings(claims)


def _named(way: str) -> str:
    """An inversion's kernel and steps in words."""
    kernel, _, steps = way.partition(" ")
    if not (kernel.isdigit() and steps.isdigit()):
        return way
    return f"{f'kernel {kernel}' if int(kernel) else 'no filter'} at {steps} steps"
