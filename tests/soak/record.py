"""What a soak saw, and whether every promise held."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from figures import table

from .prompts import is_ours

OUR_CODE = "custom_nodes/ComfyUI-Coherence/"
"""In a traceback."""
MOST_GROWTH = 0.05
NOTHING = 2**16
"""Bytes of tensors that do not count: libraries keep a few small ones after everything is freed."""
UNCLEAR_TYPES = {"KeyError", "AttributeError", "IndexError", "TypeError", "AssertionError", "UnboundLocalError"}
UNCLEAR_TYPES |= {"NameError", "ZeroDivisionError", "NotImplementedError", "StopIteration", "RecursionError"}
OF_SHAPES = re.compile(
    r"size of tensor|shapes? cannot be multiplied|must match the size|is invalid for input of size|Sizes of tensors"
    r"|to have \d+ channels|normalized_shape|not enough values to unpack|could not broadcast|out of bounds|dimension"
)


@dataclass(frozen=True)
class Run:
    """What became of a prompt."""

    workflow: str
    kind: str
    """valid, invalid or cancelled."""
    outcome: str
    """success, refused (before it ran), error or interrupted."""
    seconds: float
    change: str = ""
    """What was wrong with it."""
    error: str = ""
    node: str = ""
    """The class that complained."""
    is_ours: bool = False
    """Whether the pack's code took part in the failure."""
    is_clear: bool = True
    waited: float = 0.0
    """Seconds from the cancel to the end."""


@dataclass
class Record:
    """All that a soak saw."""

    runs: list[Run] = field(default_factory=list)
    readings: list[dict[str, int]] = field(default_factory=list)
    """Bytes of ``tensors`` and ``resident`` after ``prompts``; the first is taken when all is warm."""
    pictures: list[list[str]] = field(default_factory=list)
    """Digests of what the plain models drew."""
    fault: str = ""
    """What ended it early."""


def refused(name: str, kind: str, change: str, answer: dict[str, Any], info: dict[str, Any]) -> Run:
    complaints = [
        (node["class_type"], f"{error['message']}: {error['details']}", error["type"])
        for node in answer["node_errors"].values()
        for error in node["errors"]
    ]
    node, text, kind_of_error = complaints[0] if complaints else ("", answer["error"]["message"], "")
    ours = node in info and is_ours(info[node])
    clear = not (ours and kind_of_error == "exception_during_validation")
    return Run(name, kind, "refused", 0.0, change, text, node, ours, clear)


def finished(name: str, kind: str, change: str, entry: dict[str, Any], seconds: float, waited: float) -> Run:
    messages = dict(entry["status"]["messages"])
    if "execution_interrupted" in messages:
        return Run(name, kind, "interrupted", seconds, change, waited=waited)
    failed = messages.get("execution_error")
    if failed is None:
        return Run(name, kind, "success", seconds, change, waited=waited)
    type_, text = failed["exception_type"], failed["exception_message"].strip()
    ours = any(OUR_CODE in line.replace("\\", "/") for line in failed["traceback"])
    clear = type_.rpartition(".")[2] not in UNCLEAR_TYPES and not OF_SHAPES.search(text)
    return Run(name, kind, "error", seconds, change, f"{type_}: {text}", failed["node_type"], ours, clear, waited)


def verdicts(record: Record) -> dict[str, bool]:
    """Promise → whether it held."""
    growth = growths(record)
    return {
        "no crash, no hang": not record.fault,
        "tensors grow by 5% at most": growth["tensors"] <= MOST_GROWTH or gained(record) <= NOTHING,
        "the process grows by 5% at most": growth["resident"] <= MOST_GROWTH,
        "plain pictures stay the same to the bit": len({tuple(drawn) for drawn in record.pictures}) == 1,
        "every failure is clear": all(run.is_clear for run in record.runs),
        "valid prompts run": all(run.outcome != "error" or run.is_clear for run in record.runs if run.kind == "valid"),
    }


def growths(record: Record) -> dict[str, float]:
    """The last reading beside the first, as a share; none without two."""
    if len(record.readings) < 2:
        return {"tensors": 0.0, "resident": 0.0}
    first, last = record.readings[0], record.readings[-1]
    return {name: last[name] / max(first[name], 1) - 1 for name in ("tensors", "resident")}


def gained(record: Record) -> int:
    """Bytes of tensors, from the first reading to the last."""
    return record.readings[-1]["tensors"] - record.readings[0]["tensors"] if record.readings else 0


def line_of(count: int, run: Run) -> str:
    tail = f"  {run.change}  {run.node} {run.error.splitlines()[0][:150]}" if run.error else f"  {run.change}"
    return f"{count:4} {run.workflow:22} {run.kind:9} {run.outcome:11} {run.seconds:6.1f} s{tail}"


def report(record: Record) -> str:
    """The tables, in Markdown."""
    kinds = Counter((run.kind, run.outcome) for run in record.runs)
    outcomes = ("success", "refused", "error", "interrupted")
    counts = [
        [kind, *(str(kinds[kind, outcome]) for outcome in outcomes)] for kind in ("valid", "invalid", "cancelled")
    ]
    memory = [
        [str(r["prompts"]), f"{r['tensors'] / 2**20:.2f}", str(r["storages"]), f"{r['resident'] / 2**20:.0f}"]
        for r in record.readings
    ]
    waits = [run.waited for run in record.runs if run.outcome == "interrupted"]
    held = [[what, "yes" if holds else "NO"] for what, holds in verdicts(record).items()]
    unclear = [f"- {run.workflow}: {run.change}: {run.node}: {run.error}" for run in record.runs if not run.is_clear]
    growth = ", ".join(f"{name} {share:+.1%}" for name, share in growths(record).items())
    return "\n\n".join(
        [
            table(["holds", ""], held),
            table(["prompts", *outcomes], counts),
            table(["after prompts", "tensors, MiB", "storages", "resident, MiB"], memory),
            f"Growth from the first reading to the last: {growth}.",
            f"A cancelled prompt ended within {max(waits, default=0.0):.1f} s.",
            *unclear,
            *([record.fault] if record.fault else []),
        ]
    )
