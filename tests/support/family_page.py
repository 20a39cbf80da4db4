"""FAMILIES.md, as the families' table makes it."""

from __future__ import annotations

from family_table import TRIALS, Cell

HEAD = """# Nodes and families of models

Written by `tests/whole/test_families.py`, which tries every node that touches a model on a small random model of every
family: through ComfyUI's stock loaders, or built from ComfyUI's classes where the loaders only know full widths
(AnimateDiff-Evolved: a stand-in with its layout on the demo model). *works*: the result is finite, the node changes it,
and the model is bit-identical afterwards. *refused*: the node raises an error that says why. Nodes that are not listed
touch no model. `tests/whole/test_half_precision.py` finds the same with weights in fp16, bf16 and fp8 (e4m3fn).

After an intended change: `python3 host.py test tests/whole/test_families.py; cp test-artifacts/FAMILIES.md FAMILIES.md`
"""


def markdown(groups: dict[str, dict[str, dict[str, Cell]]]) -> str:
    """The page as FAMILIES.md has it, by heading, column and node: reasons are numbered in the order they come."""
    reasons: dict[str, int] = {}
    tables = [line for heading, columns in groups.items() for line in _table(heading, columns, reasons)]
    numbered = [f"{number}. {text}." for text, number in reasons.items()]
    return "\n".join(
        [
            HEAD,
            *tables,
            "## Reasons for refusals",
            "",
            'Where a reason has "…", the message names the model\'s class.',
            "",
            *numbered,
            "",
        ]
    )


def _table(heading: str, columns: dict[str, dict[str, Cell]], reasons: dict[str, int]) -> list[str]:
    rows = []
    for node in TRIALS:
        cells = []
        for column in columns.values():
            refused = column[node].refused
            number = reasons.setdefault(refused, len(reasons) + 1) if refused else 0
            cells.append(f"refused ({number})" if refused else "works")
        rows.append(f"| [{node}](web/docs/{node}.md) | {' | '.join(cells)} |")
    return [f"## {heading}", "", f"| node | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}", *rows, ""]
