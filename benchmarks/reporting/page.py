"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from pathlib import Path

from . import wording
from .assembling import Part, Picture, Report, by_claim
from .experiments import COSTS, PAPERS
from .findings import Claim

STYLE = Path(__file__).with_name("page.css")
WIDTH, HEIGHT = 176, 22
"""Of an interval's drawing."""


def html(report: Report) -> str:
    papers = report.papers
    body = [
        f"<h1>{wording.TITLE}</h1><p class=subtitle>{wording.SUBTITLE}</p>",
        _summary(report),
        *(_paper(report, paper) for paper in papers),
        _costs(report),
        _how(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{wording.TITLE}</title>\n<style>\n{STYLE.read_text('utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


# Pieces --------------------------------------------------------------------------------------------------------------


def table(header: str, rows: Iterable[str]) -> str:
    return f"<div class=scroll><table><thead>{header}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def row(*cells: str, kind: str = "") -> str:
    return f"<tr{_of(kind)}>{''.join(cells)}</tr>"


def cell(html: str, kind: str = "") -> str:
    return f"<td{_of(kind)}>{html}</td>"


def head(text: str, kind: str = "") -> str:
    return f"<th scope=col{_of(kind)}>{escape(text)}</th>"


def _of(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def chip(verdict: str, text: str = "") -> str:
    return f'<span class="chip {_class(verdict)}">{text or verdict}</span>'


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def bar(counts: dict[str, int]) -> str:
    """A share of the width for each verdict."""
    said = ", ".join(f"{number} {name}" for name, number in counts.items())
    shares = "".join(f'<i class="{_class(name)}" style="flex:{number}"></i>' for name, number in counts.items())
    return f'<div class=bar role=img aria-label="{said}">{shares}</div>'


def interval(claim: Claim) -> str:
    """The interval about what it is compared with; the side on which the claim would have it is shaded."""
    found = claim.difference
    if found.low != found.low:  # nothing was measured
        return ""
    reach = max(map(abs, (*found, 1.6 * claim.tolerance))) * 1.12 or 1.0

    def at(value: float) -> float:
        return round((value / reach + 1) * WIDTH / 2, 1)

    sides = {1: (0.0, reach), -1: (-reach, 0.0), 0: (-claim.tolerance, claim.tolerance)}
    left, right = map(at, sides[claim.sign]) if claim.is_papers else (0.0, 0.0)
    y, zero = HEIGHT / 2, at(0)
    colour = _class(claim.verdict) or "undecided"
    return (
        f'<svg class="interval {colour}" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden=true>'
        f'<rect class=side x="{left}" width="{right - left:.1f}" y="1" height="{HEIGHT - 2}"/>'
        f'<line class=zero x1="{zero}" x2="{zero}" y1="1" y2="{HEIGHT - 1}"/>'
        f'<line class=reach x1="{at(found.low)}" x2="{at(found.high)}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{at(found.value)}" cy="{y}" r="4"/></svg>'
    )


def figure(picture: Picture) -> str:
    source = f"data:{picture.mime};base64,{b64encode(picture.data).decode()}"
    caption = escape(picture.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


# Sections ------------------------------------------------------------------------------------------------------------


def _summary(report: Report) -> str:
    counts = wording.counts(report.claims())
    tally = "".join(
        f'<div class="{_class(name)}"><b>{number}</b>{wording.counted(name, number).partition(" ")[2]}</div>'
        for name, number in counts.items()
    )
    by_paper = []
    for paper in report.papers:
        found = wording.counts(report.claims(paper))
        link = f'<a href="#{paper}">{PAPERS[paper][0]}</a>'
        by_paper.append(row(cell(link), *(cell(str(n), "number") for n in found.values()), cell(bar(found), "wide")))
    claims = [
        row(
            cell(chips(figures)),
            cell(escape(claim.text)),
            cell(f"{PAPERS[paper][0]}, {escape(claim.where)}", "where"),
        )
        for paper in report.papers
        for claim, figures in by_claim(report.claims(paper))
    ]
    header = row(head("paper"), *(head(name, "number") for name in counts), head("", "wide"))
    return "\n".join(
        [
            f"<div class=tally>{tally}</div>{bar(counts)}",
            *(f"<p>{escape(text)}</p>" for text in wording.lead(report)),
            table(header, by_paper),
            _missing(report),
            "<h3>All claims, with a verdict for each figure that speaks for or against them</h3>",
            table(row(head("verdict"), head("claim"), head("where")), claims),
        ]
    )


def _missing(report: Report) -> str:
    parts = [part for part in report.parts if part.reason]
    lines = "".join(f"<p>{escape(part.experiment.title)}: {escape(part.reason)}.</p>" for part in parts)
    return f"<div class=note><p><strong>Not measured this time</strong></p>{lines}</div>" if parts else ""


def chips(figures: list[Claim]) -> str:
    """Each verdict that was found, with how often where there is more than one figure."""
    found = {name: number for name, number in wording.counts(figures).items() if number}
    return "".join(
        chip(name, wording.counted(name, number) if len(figures) > 1 else name) for name, number in found.items()
    )


def _paper(report: Report, paper: str) -> str:
    name, title, appeared = PAPERS[paper]
    parts = [f'<h2 id="{paper}">{name}</h2><p class=subtitle>{title}{f", {appeared}" if appeared else ""}</p>']
    for part in report.of(paper):
        parts += [f"<h3>{escape(part.experiment.title)}</h3>", f"<p>{escape(part.experiment.setting)}</p>"]
        if part.reason:
            parts.append(f"<div class=note><p>Nothing to show: {escape(part.reason)}.</p></div>")
        parts += [_claims(part.findings.claims), *map(figure, part.pictures)]
    return "\n".join(parts)


def _claims(claims: list[Claim]) -> str:
    if not claims:
        return ""
    rows = []
    for claim, figures in by_claim(claims):
        for each in figures:
            where = f"<span class=where>{escape(claim.where)}</span>"
            text = f"{escape(claim.text)} {where}<br>" if each is figures[0] else ""
            rows.append(_figure(each, text, "" if each is figures[-1] else "same"))
    asides = [claim for claim in claims if not claim.is_papers]
    rows += [_figure(each, f"<em>Beside the claims:</em> {escape(each.text)}<br>", "") for each in asides]
    header = row(head(""), head("claim, and what was measured"), head("", "wide"), head("with its 95% interval"))
    return table(header, rows)


def _figure(claim: Claim, text: str, kind: str) -> str:
    expected = f"claimed: {claim.expected}; " if claim.expected else ""
    basis = escape(expected + wording.basis(claim))
    return row(
        cell(chip(claim.verdict) if claim.verdict else ""),
        cell(f"{text}<span class=small>{escape(claim.figure)}</span>"),
        cell(interval(claim), "wide"),
        cell(f"{escape(claim.measured)}<br><span class=small>{basis}</span>", "measured"),
        kind=kind,
    )


def _costs(report: Report) -> str:
    if not report.costs and not report.of(COSTS):
        return ""
    rows = [
        row(
            cell(escape(cost.what)),
            cell(escape(cost.measured), "measured"),
            cell(escape(cost.theory)),
            cell(escape(cost.peer)),
        )
        for cost in report.costs
    ]
    header = row(*map(head, wording.COSTS_HEADER))
    pictures = map(figure, report.cost_pictures)
    return "\n".join(["<h2 id=costs>Costs</h2>", f"<p>{wording.COSTS}</p>", table(header, rows), *pictures])


def _how(report: Report) -> str:
    versions = [row(cell(escape(name)), cell(escape(value))) for name, value in report.versions.items()]
    header = row(head("experiment, and its seeds"), head("took", "number"), head("of processors", "number"), head(""))
    return "\n".join(
        [
            "<h2 id=how>How it was measured</h2>",
            f"<p>By <code>python3 host.py report --budget {report.budget}</code>.</p>",
            table("", versions),
            table(header, (_experiment(part, report.budget) for part in report.parts)),
        ]
    )


def _experiment(part: Part, budget: str) -> str:
    each = part.experiment
    setting = f"<span class=small>{escape(each.setting)}</span>"
    return row(
        cell(f"<code>{escape(wording.command(each, budget))}</code><br>{setting}"),
        cell(wording.duration(part.seconds), "number"),
        cell(wording.duration(part.processor), "number"),
        cell(escape(part.reason or "measured")),
    )
