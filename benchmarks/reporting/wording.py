"""What the page and the Markdown say in the same words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from .assembling import Report
from .experiments import Experiment
from .findings import FAILS, FEWEST, HOLDS, UNDECIDED, Claim, count
from .running import Outcome

TITLE = "Four papers, held to their claims"
COSTS = "Ratios, wherever one says more than a time on this machine; brackets hold 95% intervals."
COSTS_HEADER = ["what", "measured", "theory or target", "peers"]
SUBTITLE = "What ComfyUI-Coherence measured on small models of its own"


def lead(report: Report) -> list[str]:
    """What the reader should know first."""
    found = count(report.claims())
    total = found.total()
    chance = max(1, round(0.05 * total))
    return [
        "Each claim is one that a paper makes of large models. Each figure beside it is of this pack’s demo model, 4 "
        "million parameters that draw one coloured shape at 128 pixels. What fails here may hold there, and the other "
        "way round: the papers’ models and scores (FID, CLIP, aesthetics) were not at hand, and what stands in for "
        "them is named with every figure.",
        "Verdicts are computed from the 95% interval and from nothing else. A claim "
        f"“{HOLDS}” where the whole interval lies on its side, and “{FAILS}” where it lies on the other; a claim that "
        "something stays the same, where the interval lies within, or without, what is said to count as the same. "
        f"Otherwise it is “{UNDECIDED}”, and so it is with fewer than {FEWEST} clips, prompts or layers. Intervals are "
        "bootstrap ones over these, with percentiles expanded to cover about 95% with few of them, too (Hesterberg "
        "2015); those in the charts are plain and somewhat narrower. Differences are taken clip by clip.",
        f"The {total} verdicts are not corrected for their number: were none of the claims true, and none false, about "
        f"{chance} of them would still look clear by chance.",
    ]


def counts(claims: list[Claim]) -> dict[str, int]:
    """Of each verdict, in their order."""
    found = count(claims)
    return {name: found[name] for name in (HOLDS, FAILS, UNDECIDED)}


def counted(verdict: str, number: int) -> str:
    """``2 hold``."""
    words = {HOLDS: "hold", FAILS: "do not"} if number != 1 else {}
    return f"{number} {words.get(verdict, verdict)}"


def basis(claim: Claim) -> str:
    """On what a figure stands."""
    unit = claim.unit.removesuffix("s") if claim.units == 1 else claim.unit
    return f"{claim.units} {unit}" + (f": {claim.remark}" if claim.remark else "")


def command(experiment: Experiment, budget: str) -> str:
    """As it can be typed."""
    words = experiment.arguments(budget, Path("DIR"), Path("FOLDER"))
    return shlex.join(["python", f"benchmarks/{experiment.script}", *words])


def took(experiments: Sequence[Experiment], outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The time of all, and what it would be with nothing else on the machine: two at once, and some alone."""
    if not all(outcome.processor or outcome.reason for outcome in outcomes):  # this system does not say
        return {"Took": duration(sum(outcome.seconds for outcome in outcomes))}
    alone, beside = (
        sum(o.processor for e, o in zip(experiments, outcomes, strict=True) if e.is_alone == is_alone)
        for is_alone in (True, False)
    )
    return {"Took": f"{duration(alone + beside)} of processors, {duration(alone + beside / 2)} on two quiet cores"}


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
