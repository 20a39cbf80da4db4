"""The report as one HTML page that needs nothing else, and as Markdown with its pictures beside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from claims import FEWEST, NO_GAIN, UNDECIDED, VERDICTS, Claim, count
from figures import claims_chart, claims_table, on_a_line, p_shown, table
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape  # comes with PyTorch

from .assembling import About, Part, Picture, Report, by_claim, shrunk
from .experiments import COSTS, PAPERS
from .top import HEADER, rows_of
from .top import markdown as top_table

FOLDER = "report"
"""Of the Markdown's pictures."""


def lead(report: Report) -> list[str]:
    """What the reader should know first."""
    total = count(report.claims()).total()
    chance = max(1, round(0.05 * total))
    decided = sum(claim.verdict != UNDECIDED for claim in report.claims() if claim.is_papers)
    standing = sum(report.stands(claim) for claim in report.claims())
    return [
        "Each claim is one that a paper makes of large models. The figures beside them are of this pack’s small "
        "models: the first, of 4 million parameters, which draws one coloured shape at 128 pixels, or, where a section "
        "says so, the world’s picture model, which draws 32 things. What fails here may hold there, and the other "
        "way round: the papers’ models and scores (FID, CLIP, aesthetics) were not at hand, and what stands in for "
        "them is named with every figure.",
        "Verdicts are computed from the 95% interval and from nothing else. A claim “holds” where the whole interval "
        "lies on its side, and “does not” where it lies on the other; a claim that something stays the same, where "
        f"the interval lies within, or without, what is said to count as the same. It shows “{NO_GAIN}” where the "
        "interval has 0 in it and leaves out what would be worth having, which stands beside each figure. Otherwise it "
        "is “undecided”, with the number of clips that would decide it in 80 of 100 studies; and so "
        f"it is with fewer than {FEWEST} clips, prompts or layers. Intervals are BCa bootstrap ones over these, as "
        "wide as Student’s t would have them, so that they cover about 95% with few of them, too (Hesterberg 2015). "
        "Differences are taken clip by clip.",
        f"Intervals and verdicts are plain, each as if it were the only one: were none of the {total} claims true, and "
        f"none false, about {chance} would still look clear by chance. Corrected for their number (Holm 1979), "
        f"{standing} of the {decided} that are decided still are; their p is below 0.05 in the tables.",
    ]


def papers(report: Report) -> About:
    """The report of the papers' claims, on the demo models."""
    return About(
        f"Four papers, held to their claims at {commit_of(report)}",
        "What ComfyUI-Coherence measured on small models of its own",
        PAPERS,
        lead,
        f"python3 host.py report --budget {report.budget}",
    )


def counts(claims: list[Claim]) -> dict[str, int]:
    """Of each verdict, in their order."""
    found = count(claims)
    return {name: found[name] for name in VERDICTS}


def counted(verdict: str, number: int) -> str:
    """``2 hold``."""
    several = {"holds": "hold", "does not": "do not", NO_GAIN: "show no gain"}
    return f"{number} {verdict if number == 1 else several.get(verdict, verdict)}"


def verdicts(figures: list[Claim]) -> list[tuple[str, str]]:
    """Each that was found, and in words, with how often where there is more than one figure."""
    found = counts(figures)
    return [(name, counted(name, n) if len(figures) > 1 else name) for name, n in found.items() if n]


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def took(parts: Sequence[Part]) -> dict[str, str]:
    """The time of all, and what it would be with nothing else on the machine: two at once, and some alone."""
    if not all(part.processor or part.reason for part in parts):  # this system does not say
        return {"Took": duration(sum(part.seconds for part in parts))}
    alone, beside = (
        sum(part.processor for part in parts if part.experiment.is_alone == is_alone) for is_alone in (True, False)
    )
    return {"Took": f"{duration(alone + beside)} of processors, {duration(alone + beside / 2)} on two quiet cores"}


def commit_of(report: Report) -> str:
    """As the first line names it."""
    return report.versions.get("ComfyUI-Coherence", "commit unknown").partition(", ")[2] or "commit unknown"


def _source(picture: Picture) -> str:
    return f"data:{picture.mime};base64,{b64encode(picture.data).decode()}"


def _render(template: str, report: Report) -> str:
    about = report.about or papers(report)
    known: dict[str, Any] = {
        "about": about,
        "folder": FOLDER,
        "report": report,
        "papers": about.sections,
        "costs_key": COSTS,
        "undecided": UNDECIDED,
        "missing": [part for part in report.parts if part.reason and not part.findings],
        "partly": [part for part in report.parts if part.reason and part.findings],
        **{each.__name__: each for each in (counts, counted, verdicts, duration, by_claim, on_a_line)},
        **{each.__name__: each for each in (table, claims_table, p_shown)},
        "top_table": top_table,
        "has_claims": any(claim.is_papers for claim in report.claims()),
        "rows": rows_of(report.claims(), report.costs),
        "top_header": HEADER,
        "source": _source,
    }
    return _environment().get_template(template).render(known)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def html(report: Report) -> str:
    return _render("page.html", report)


def markdown(report: Report) -> str:
    return _render("report.md", report)


def write(report: Report, folder: Path) -> None:
    """``REPORT.md`` and its pictures in ``folder``; those of an earlier report go."""
    made = {picture.name: picture.data for part in report.parts for picture in part.pictures}
    for paper in report.papers:
        if claims := report.claims(paper):
            claims_chart(claims).savefig(chart := BytesIO(), dpi=80)
            made[f"claims_{paper}.png"] = shrunk(chart, is_chart=True)
    pictures = folder / FOLDER
    pictures.mkdir(parents=True, exist_ok=True)
    for each in pictures.iterdir():
        if each.suffix in (".png", ".jpg") and each.name not in made:
            each.unlink()
    for name, data in made.items():
        (pictures / name).write_bytes(data)
    (folder / "REPORT.md").write_text(markdown(report), "utf-8")
