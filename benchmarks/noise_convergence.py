"""ZS²'s Fig. 10: how fast the two-stage search of its noise converges, beside the pack's orthogonal candidates.

    python benchmarks/noise_convergence.py [--pairs 24] [--steps 15] [--out FOLDER]

A frame of 4×64×64, that of 512×512 pixels in SD, and the one after it at λ = 0.01: the first stage draws 10 noises and
keeps the one whose divergence is nearest to λ; the second searches α in so many steps. Measured after every step:
|KL − λ| in λ. *Search*: Algorithm 1 with the guard that :mod:`coherence.noise.solvers` explains; without it every frame
becomes the first. *One candidate*: no first stage. *Orthogonal*: the pack's own, by bisection.
"""

from __future__ import annotations

from typing import Any

import torch
from claims import Claim, estimate, shown
from figures import claims_table, line, panels, publish, style, table
from harness import Json, Records, command_line, pack
from power import worth
from torch import Tensor
from zs2_design import KL

NAME = "noise_convergence"
FRAME, CANDIDATES = (4, 64, 64), 10
STEPS = 15
"""Of the second stage, in the paper."""
CONVERGED = 0.1
"""|KL − λ| in λ that counts as converged."""
WAYS = ("search", "one candidate", "orthogonal")


def errors(way: str, seed: int, steps: int) -> list[float]:
    """|KL − λ| in λ before the second stage and after each of its steps."""
    source = torch.Generator().manual_seed(seed)
    previous, *drawn = torch.randn(1 + CANDIDATES, *FRAME, generator=source)
    solvers, divergence = pack("noise.solvers"), pack("noise.divergence").Divergence("generalised", previous)
    candidate = drawn[0]
    if way == "search":
        candidate = min(drawn, key=lambda frame: abs(divergence(frame) - KL))
    if way == "orthogonal":
        candidate = pack("noise.orthogonal").orthogonal(candidate, previous)
    curve = divergence.along(candidate)

    def left(step: int) -> float:
        if way != "orthogonal":
            return abs(curve(solvers.line_search(curve, KL, step)) - KL) / KL
        tried: list[float] = []

        def counted(alpha: float) -> float:
            tried.append(curve(alpha))
            if len(tried) > step + 1:
                raise StopIteration
            return tried[-1]

        try:
            solvers.bisection(counted, KL)
        except StopIteration:
            tried.pop()
        return abs(tried[-1] - KL) / KL

    return [left(step) for step in range(steps + 1)]


def record(seed: int, steps: int) -> Json:
    return {way: errors(way, seed, steps) for way in WAYS}


def values(records: list[Json], way: str) -> Tensor:
    """(pairs, steps + 1)."""
    return torch.tensor([each[way] for each in records], dtype=torch.float64)


def claims(records: list[Json]) -> list[Claim]:
    last, first, other = (values(records, way)[:, -1] for way in WAYS)
    how: dict[str, Any] = {"unit": "noises", "worth": worth("ratio")}
    about = f"|KL − λ| in λ after {len(records[0]['search']) - 1} steps"
    text = "The two-stage search converges rapidly to a minimal error"
    more = {"beside": CONVERGED, "unit": "noises", "worth": CONVERGED / 2}
    return [
        Claim.of("Fig. 10", text, f"{about}, λ = {KL:g}", last, ".4f", -1, **more),
        Claim.of(
            "Fig. 10",
            "The first stage brings it closer",
            f"{about}, less one candidate",
            last - first,
            "+.4f",
            -1,
            **how,
        ),
        Claim.of(
            "",
            "Orthogonal candidates come closer",
            f"{about}, less the search",
            other - last,
            "+.4f",
            -1,
            unit="noises",
            is_papers=False,
        ),
    ]


def chart(records: list[Json]) -> Any:
    subtitle = f"|KL − λ| in λ = {KL:g}, {len(records)} pairs of frames, with 95% intervals."
    figure, ((axes,),) = panels("How the search converges", subtitle, 1, 1, (560, 360), subplot_kw={"yscale": "log"})
    style(axes, "", "step of the second stage")
    for number, way in enumerate(WAYS):
        found = [estimate(column) for column in values(records, way).unbind(1)]
        line(axes, range(len(found)), found, number, way, band=True)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = command_line(__doc__, "minutes", "publish", comfyui=False, pairs=(24, "of frames"), steps=(STEPS, ""))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = Records(arguments.out, {"kl": KL, "steps": arguments.steps, "candidates": CANDIDATES})
    wanted = ((f"{seed:02}", lambda seed=seed: record(seed, arguments.steps)) for seed in range(arguments.pairs))
    records = list(kept.take(wanted, arguments.minutes))
    rows = [[way, *(shown(estimate(values(records, way)[:, at]), ".4f") for at in (0, 5, -1))] for way in WAYS]
    text = f"{claims_table(claims(records))}\n\n{table(['', 'before', '5 steps', 'all steps'], rows)}"
    print(publish(NAME, arguments.out, arguments.publish, text, chart(records)))


if __name__ == "__main__":
    main()
