"""From what was run to what a page shows: findings, pictures, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from itertools import groupby
from pathlib import Path

from claims import UNDECIDED, Claim, Cost, Table
from figures import PACK
from PIL import Image
from power import LEVEL, holm

from .experiment import COSTS, Experiment
from .experiments import PAPERS
from .running import Outcome, out_of

WIDEST = {"chart": 1200, "sheet": 900}
"""Pixels."""
COLOURS = 96
"""Of a chart: that is enough for its lines, and saves two thirds of its bytes."""


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    data: bytes

    @property
    def mime(self) -> str:
        return "image/png" if self.name.endswith("png") else "image/jpeg"


@dataclass(frozen=True)
class Part:
    """An experiment, and what came of it: ``reason`` says why nothing did."""

    experiment: Experiment
    findings: list[Claim | Cost | Table]
    pictures: list[Picture]
    reason: str
    seconds: float
    processor: float

    @property
    def claims(self) -> list[Claim]:
        return [each for each in self.findings if isinstance(each, Claim)]

    @property
    def tables(self) -> list[Table]:
        return [each for each in self.findings if isinstance(each, Table)]


@dataclass(frozen=True)
class About:
    """What a report is of. ``sections``: key → name, title, where that appeared; ``command``: what makes it."""

    title: str
    subtitle: str
    sections: Mapping[str, tuple[str, str, str]]
    lead: Callable[[Report], list[str]]
    command: str


@dataclass(frozen=True)
class Report:
    budget: str
    parts: list[Part]
    versions: dict[str, str]
    about: About | None = None
    """The papers, where it is of nothing else."""

    def of(self, paper: str) -> list[Part]:
        return [part for part in self.parts if part.experiment.paper == paper]

    def claims(self, paper: str | None = None) -> list[Claim]:
        """A paper's, or all."""
        return [claim for part in self.parts if paper in (None, part.experiment.paper) for claim in part.claims]

    @cached_property
    def corrected(self) -> dict[Claim, float]:
        """Of each of the papers' claims its p, corrected by Holm for the number of them all."""
        papers = [claim for claim in self.claims() if claim.is_papers]
        return dict(zip(papers, holm([claim.p for claim in papers]), strict=True))

    def stands(self, claim: Claim) -> bool:
        """Whether its verdict is one that stands among all of them."""
        return claim.is_papers and claim.verdict != UNDECIDED and self.corrected[claim] < LEVEL

    def standing(self, paper: str | None = None) -> list[Claim]:
        return [claim for claim in self.claims(paper) if self.stands(claim)]

    @property
    def costs(self) -> list[Cost]:
        return [each for part in self.parts for each in part.findings if isinstance(each, Cost)]

    @property
    def papers(self) -> list[str]:
        sections = PAPERS if self.about is None else self.about.sections
        return [each for each in sections if self.of(each)]

    @property
    def cost_pictures(self) -> list[Picture]:
        return [picture for part in self.of(COSTS) for picture in part.pictures]


def by_claim(claims: Sequence[Claim]) -> Iterator[tuple[Claim, list[Claim]]]:
    """The figures of each of a paper's claims together; the first stands for them."""
    papers = [claim for claim in claims if claim.is_papers]
    order = {(claim.where, claim.text): place for place, claim in reversed([*enumerate(papers)])}
    for _, group in groupby(
        sorted(papers, key=lambda claim: order[claim.where, claim.text]), lambda claim: (claim.where, claim.text)
    ):
        figures = list(group)
        yield figures[0], figures


def assemble(
    experiments: Sequence[Experiment],
    outcomes: Sequence[Outcome],
    folder: Path,
    budget: str,
    versions: dict[str, str],
    about: About | None = None,
) -> Report:
    parts = [_part(each, outcome, out_of(each, folder)) for each, outcome in zip(experiments, outcomes, strict=True)]
    return Report(budget, parts, versions, about)


def _part(experiment: Experiment, outcome: Outcome, out: Path) -> Part:
    reason, findings, processor = outcome.reason, [], outcome.processor
    counts = not reason or (experiment.counts_in_part and (out / experiment.results).exists())
    if counts:
        try:
            findings = experiment.findings(out)
            processor = max(processor, experiment.processor(out))
        except (OSError, ValueError, LookupError) as error:
            reason = f"its figures could not be read: {type(error).__name__}: {error}".replace(str(out), "FOLDER")
            counts = False
    paths = {out / name: caption for name, caption in experiment.pictures.items()}
    pictures = [
        Picture(f"{experiment.name}{path.suffix}", caption, shrunk(path, path.suffix == ".png"))
        for path, caption in paths.items()
        if counts and path.exists()
    ]
    return Part(experiment, findings, pictures, reason, outcome.seconds, processor)


def shrunk(source: Path | BytesIO, is_chart: bool) -> bytes:
    """The picture, small enough to be committed; a chart stays a PNG."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    widest = WIDEST["chart" if is_chart else "sheet"]
    if picture.width > widest:
        size = (widest, round(picture.height * widest / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    data = BytesIO()
    if is_chart:
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    else:
        picture.save(data, "JPEG", quality=74, optimize=True)
    return data.getvalue()


# Versions ------------------------------------------------------------------------------------------------------------


def versions_of(comfyui: Path, threads: int) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "ComfyUI": _quoted(comfyui / "comfyui_version.py", "__version__"),
        "ComfyUI-Coherence": f"{_quoted(PACK / 'pyproject.toml', 'version')}{_commit()}",
        "PyTorch": version("torch"),
        "Python": platform.python_version(),
        "System": f"{platform.system()} {platform.machine()}",
        "Processor": f"{_processor()}, {os.cpu_count()} threads"
        + ", of which each experiment gets one" * (threads == 1),
    }


def _quoted(path: Path, name: str) -> str:
    """The value of ``name = "…"`` in a file."""
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == name:
                return value.strip().strip("\"'")
    return "unknown"


def _git(pack: Path, *words: str) -> str:
    command = ["git", "-C", str(pack), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _commit() -> str:
    try:
        commit = _git(PACK, "rev-parse", "--short=10", "HEAD")
        changed = _git(PACK, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ", commit unknown"
    return f", commit {commit}{' and changes' if changed else ''}"


def require_clean(pack: Path = PACK) -> None:
    """Exits unless all that the report measures and writes is committed: its first line names the commit."""
    try:
        changed = _git(pack, "status", "--porcelain").splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--publish needs the pack's Git repository, to name the commit: {error}") from error
    if changed:
        named = ", ".join(line.split(maxsplit=1)[1] for line in changed[:3]) + ", …" * (len(changed) > 3)
        raise SystemExit(
            f"--publish names the commit that was measured, but {len(changed)} files differ from it: {named}. Commit "
            "them or put them back, then publish; --resume keeps what was measured."
        )


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
