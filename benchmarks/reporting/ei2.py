"""What the studies of one-shot tuning say of EI²'s claims."""

from __future__ import annotations

from typing import Any

import covariate_shift
import ei2_report
from covariate_shift import POINTS, QUERIES

from .findings import Claim, Findings, mean

Records = list[dict[str, Any]]
LITTLE = 0.05
"""‖Δμ‖/‖μ‖ or ‖ΔΣ‖/‖Σ‖ that counts as little impact."""
SYMBOLS = ("‖Δμ‖/‖μ‖", "‖ΔΣ‖/‖Σ‖")
MOMENTS = ("mean", "covariance")


def edits(records: Records) -> Findings:
    """Clips that were tuned on, inverted and edited."""

    def claim(text: str, way: str, other: str, name: str, sign: int, is_papers: bool = True) -> Claim:
        gain = ei2_report.values(records, way, name) - ei2_report.values(records, other, name)
        title, form = ei2_report.MEASURES[name]
        figure, where = f"{title}, “{way}” less “{other}”", "B.2" if is_papers else ""
        return Claim(where, text, figure, mean(gain), "+" + form, len(records), sign, is_papers=is_papers)

    tav, mapped = "Tune-A-Video", "STAM, cross_map"
    return Findings(
        [
            claim("EI² surpasses Tune-A-Video in textual alignment", "STAM", tav, "obeys", 1),
            claim("EI² surpasses Tune-A-Video in temporal consistency", "STAM", tav, "warped", -1),
            claim("EI² surpasses Tune-A-Video in temporal consistency", "STAM", tav, "steady", 1),
            claim("P2P with EI² preserves structure better", mapped, "STAM", "iou", 1),
            claim("P2P with EI² makes results more stable", mapped, "STAM", "warped", -1),
            claim("P2P with EI² makes results more stable", mapped, "STAM", "steady", 1),
            claim("tuning on a clip keeps its motion", "STAM", "untuned", "track", -1, is_papers=False),
            claim("STAM keeps it better than Tune-A-Video", "STAM", tav, "track", -1, is_papers=False),
        ]
    )


def shifts(records: Records) -> Findings:
    """What tuning does to the features."""

    def restricted(which: int, point: str) -> Claim:
        ratio = covariate_shift.ratio(records, "STAM", "plain temporal", point, which)
        text = f"STAM shifts the {MOMENTS[which]} of features less than plain temporal attention does"
        figure = f"{SYMBOLS[which]} {POINTS[point]}, STAM’s over plain temporal attention’s"
        return Claim("A.5", text, figure, mean(ratio), ".2f", len(ratio), -1, beside=1.0)

    def of_queries(which: int) -> Claim:
        way = QUERIES.format("STAM")
        values = covariate_shift.values(records, way, "layer", which).mean(1)
        text = ("Tuning W_q leaves the mean as it is", "Tuning W_q has little impact on the covariance")[which]
        figure = f"{SYMBOLS[which]} {POINTS['layer']}, {way}"
        where = ("A.3", "proposition 2")[which]
        return Claim(where, text, figure, mean(values), ".3f", len(values), 0, tolerance=LITTLE)

    bound = covariate_shift.values(records, "STAM", "alone", 1).mean(1)
    return Findings(
        [
            *(restricted(which, point) for point in POINTS for which in (0, 1)),
            Claim(
                "proposition 3",
                "STAM by itself shifts the covariance by no more than that is",
                f"{SYMBOLS[1]} {POINTS['alone']}, STAM",
                mean(bound),
                ".3f",
                len(bound),
                -1,
                beside=1.0,
            ),
            *(of_queries(which) for which in (0, 1)),
        ]
    )
