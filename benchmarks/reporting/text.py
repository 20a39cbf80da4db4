"""The report as Markdown, with its pictures as files beside it."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from studies import markdown

from . import wording
from .assembling import Part, Picture, Report, by_claim, shrunk
from .experiments import COSTS, PAPERS
from .findings import FAILS, HOLDS, UNDECIDED, VERDICTS, Claim

FOLDER = "report"
"""Of the pictures."""
COLOUR = {HOLDS: "#00795a", FAILS: "#b8490a", UNDECIDED: "#6b7480", "": "#6b7480"}


def text(report: Report) -> str:
    parts = [f"# {wording.TITLE}", f"*{wording.SUBTITLE}*", *wording.lead(report), _summary(report)]
    for paper in report.papers:
        parts += _paper(report, paper)
    if report.costs or report.of(COSTS):
        rows = [[cost.what, cost.measured, cost.theory, cost.peer] for cost in report.costs]
        parts += [
            "## Costs",
            wording.COSTS,
        ]
        parts += [markdown(wording.COSTS_HEADER, rows)] * bool(rows)
        parts += map(_picture, report.cost_pictures)
    versions = markdown(["", ""], [[name, value] for name, value in report.versions.items()])
    how = [_experiment(part, report.budget) for part in report.parts]
    parts += [
        "## How it was measured",
        f"By `python3 host.py report --budget {report.budget}`.",
        versions,
        markdown(["experiment", "what, and from which seeds", "took", "of processors", ""], how),
    ]
    return "\n\n".join(parts) + "\n"


def files(report: Report) -> dict[str, bytes]:
    """Name → contents: all that ``text`` shows, for ``FOLDER``."""
    pictures = [picture for part in report.parts for picture in part.pictures]
    charts = {f"claims_{paper}.png": intervals(report.claims(paper)) for paper in report.papers if report.claims(paper)}
    return {picture.name: picture.data for picture in pictures} | charts


def write(report: Report, folder: Path) -> Path:
    """``REPORT.md`` and its pictures in ``folder``; those of an earlier report go."""
    path, pictures = folder / "REPORT.md", folder / FOLDER
    pictures.mkdir(parents=True, exist_ok=True)
    made = files(report)
    for each in pictures.iterdir():
        if each.suffix in (".png", ".jpg") and each.name not in made:
            each.unlink()
    for name, data in made.items():
        (pictures / name).write_bytes(data)
    path.write_text(text(report), "utf-8")
    return path


def _summary(report: Report) -> str:
    def row(name: str, claims: list[Claim]) -> list[str]:
        return [name, *map(str, wording.counts(claims).values())]

    rows = [row(PAPERS[paper][0], report.claims(paper)) for paper in report.papers]
    rows.append(row("**all**", report.claims()))
    parts = [markdown(["figures of", *VERDICTS], rows)]
    missing = [f"- {part.experiment.title}: {part.reason}." for part in report.parts if part.reason]
    parts += ["**Not measured this time**\n\n" + "\n".join(missing)] if missing else []
    claims = [
        [_verdicts(figures), claim.text, f"{PAPERS[paper][0]}, {claim.where}"]
        for paper in report.papers
        for claim, figures in by_claim(report.claims(paper))
    ]
    parts += [markdown(["verdict", "claim", "where"], claims)] if claims else []
    return "\n\n".join(parts)


def _verdicts(figures: list[Claim]) -> str:
    found = {name: number for name, number in wording.counts(figures).items() if number}
    return ", ".join(
        _bold(name, wording.counted(name, number) if len(figures) > 1 else name) for name, number in found.items()
    )


def _bold(verdict: str, said: str) -> str:
    return said if verdict in (UNDECIDED, "") else f"**{said}**"


def _paper(report: Report, paper: str) -> Iterable[str]:
    name, title, appeared = PAPERS[paper]
    yield f"## {name}"
    yield f"*{title}*{f', {appeared}' if appeared else ''}"
    if report.claims(paper):
        yield f"![Interval of every figure of {name}]({FOLDER}/claims_{paper}.png)"
    for part in report.of(paper):
        yield f"### {part.experiment.title}"
        yield part.experiment.setting
        if part.reason:
            yield f"Nothing to show: {part.reason}."
        if part.findings.claims:
            header = ["", "claim", "where", "figure", "claimed", "measured, with its 95% interval", "on"]
            yield markdown(header, [_row(claim) for claim in part.findings.claims])
        yield from map(_picture, part.pictures)


def _row(claim: Claim) -> list[str]:
    said = claim.text if claim.is_papers else f"({claim.text})"
    cells = [_bold(claim.verdict, claim.verdict), said, claim.where, claim.figure, claim.expected, claim.measured]
    return [cell.replace("|", "\\|") for cell in (*cells, wording.basis(claim))]


def _picture(picture: Picture) -> str:
    return f"![{picture.caption}]({FOLDER}/{picture.name})\n\n*{picture.caption}*"


def _experiment(part: Part, budget: str) -> list[str]:
    command = f"`{wording.command(part.experiment, budget)}`"
    return [
        command,
        part.experiment.setting,
        wording.duration(part.seconds),
        wording.duration(part.processor),
        part.reason or "measured",
    ]


def intervals(claims: list[Claim]) -> bytes:
    """A chart: a line for each figure, in a scale of its own about what it is compared with; shaded is the side on
    which the claim would have it."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(10, 0.6 + 0.27 * len(claims)), layout="constrained")
    axes: Any = chart.subplots()
    for y, claim in enumerate(claims):
        found = claim.difference
        reach = 1.12 * max(map(abs, (*found, 1.6 * claim.tolerance))) or 1.0
        sides = {1: (0, 1), -1: (-1, 0), 0: (-claim.tolerance / reach, claim.tolerance / reach)}
        if claim.is_papers:
            left, right = sides[claim.sign]
            axes.barh(y, right - left, 0.86, left, color="#e3efe9")
        colour = COLOUR[claim.verdict]
        axes.plot((found.low / reach, found.high / reach), (y, y), color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(found.value / reach, y, "o", color=colour, markersize=5)
    axes.axvline(0, color="#616e7c", linewidth=0.8)
    axes.set_yticks(range(len(claims)), [_label(claim) for claim in claims], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-1, 1)
    axes.set_xticks([])
    axes.margins(y=0.01)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    data = BytesIO()
    chart.savefig(data, dpi=80)
    return shrunk(data, is_chart=True)


def _label(claim: Claim) -> str:
    said = claim.text if len(claim.text) < 88 else f"{claim.text[:86]}…"
    return said if claim.is_papers else f"({said})"
