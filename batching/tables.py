"""Read a table of variations: CSV (a run for each line) or YAML and JSON (grids, lists, and what all runs share)."""

import csv
import io
import itertools
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..client.errors import ComfyError

Row = dict[str, Any]
"""Column, ``node.input`` → value: what one run changes."""

_PARTS = {"set", "list", "grid"}
_SHAPE = (
    'expected "set" (a value for all runs), "list" (lists of one length, read side by side, or a list of runs) or '
    '"grid" (lists, of which every combination is run)'
)


class Cell(str):
    """Text from a CSV file: what it means depends on the input that it is for."""


def read_table(path: Path) -> list[Row]:
    """The rows of a table, in order.

    Raises:
        ComfyError: it cannot be read, is of no known kind, is not made as its kind should be, or holds no run.
    """
    kind = path.suffix.lower()
    readers = {".csv": read_csv, ".tsv": read_csv, ".json": read_json, ".yaml": read_yaml, ".yml": read_yaml}
    if kind not in readers:
        raise ComfyError(f"The table {path} ends in {kind!r}: expected .csv, .tsv, .yaml, .yml or .json.")
    try:
        text = path.read_text("utf-8-sig")  # a spreadsheet may begin with a byte order mark
    except OSError as error:
        raise ComfyError(f"The table {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ComfyError(f"The table {path} is not UTF-8: {error}. Save it as CSV UTF-8.") from error
    try:
        rows = readers[kind](text)
    except ComfyError as error:
        raise ComfyError(f"The table {path}: {error}") from error
    if not rows:
        raise ComfyError(f"The table {path} is empty: it holds no run. Give it at least one row below its header.")
    return rows


def read_csv(text: str) -> list[Row]:
    """Rows of ``node.input`` columns; an empty cell leaves the workflow's value. Separated by , ; or tabs."""
    head = re.sub(r'"[^"]*"', "", text.lstrip()).partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        lines = [line for line in reader if any(line)]
    except csv.Error as error:
        raise ComfyError(
            f"line {reader.line_num} is not valid CSV: {error}. Put quotes around a whole cell, and double a quote "
            "inside it."
        ) from error
    if not lines:
        return []
    columns = [column.strip() for column in lines[0]]
    for place, column in enumerate(columns, start=1):
        if not column:
            raise ComfyError(f"column {place} has no name: expected node.input in the first line.")
        if columns.count(column) > 1:
            raise ComfyError(f"the column {column!r} is there twice.")
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        if len(line) > len(columns):
            raise ComfyError(
                f"row {number} has {len(line)} cells, and there are {len(columns)} columns: put quotes around a cell "
                f"that holds {delimiter!r}."
            )
        rows.append({column: Cell(cell) for column, cell in zip(columns, line, strict=False) if cell})
    return rows


def read_json(text: str) -> list[Row]:
    """As ``read_yaml``, in JSON: that needs no package."""
    try:
        return expand(json.loads(text, object_pairs_hook=_without_doubles))
    except (ValueError, RecursionError) as error:
        raise ComfyError(f"it is not valid JSON: {error}.") from error


def read_yaml(text: str) -> list[Row]:
    """A mapping of ``set``, ``list`` and ``grid``, or a list of such mappings, one after the other."""
    try:
        import yaml
    except ImportError as error:
        raise ComfyError(
            "YAML needs PyYAML: run  pip install pyyaml , or batch.py with ComfyUI's Python, or write the table as "
            ".json or .csv."
        ) from error

    class Loader(yaml.SafeLoader):
        """Refuses what PyYAML would lose: a key that is there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            _without_doubles([(self.construct_object(key, deep=True), None) for key in keys])
            return super().construct_mapping(node, deep)

    try:
        return expand(yaml.load(text, Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ComfyError(f"it is not valid YAML: {error}.") from error


def _without_doubles(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    keys = [str(key) for key, _ in pairs]
    if odd := [key for key, _ in pairs if not isinstance(key, Hashable)]:
        raise ComfyError(f"expected names such as KSampler.steps, got {odd[0]!r}.")
    if doubles := sorted({key for key in keys if keys.count(key) > 1}):
        raise ComfyError(f"{doubles[0]!r} is there twice.")
    return dict(pairs)


def expand(table: Any) -> list[Row]:
    """The rows of a table as YAML and JSON write it."""
    blocks = table if isinstance(table, list) else [] if table is None else [table]
    return [row for block in blocks for row in _expand_block(block)]


def _expand_block(block: Any) -> Iterator[Row]:
    if not isinstance(block, Mapping) or not block or not block.keys() <= _PARTS:
        found = ", ".join(map(repr, block)) if isinstance(block, Mapping) else repr(block)
        raise ComfyError(f"{_SHAPE}, got {found or 'nothing'}.")
    fixed = _columns(block.get("set") or {}, "set")
    listed = _rows_side_by_side(block["list"]) if "list" in block else [{}]
    grid = {column: _values(values, column) for column, values in _columns(block.get("grid") or {}, "grid").items()}
    if len(block) == 1 and "set" in block and not fixed:
        return
    for row in listed:
        columns = [*fixed, *row, *grid]
        if doubles := sorted({column for column in columns if columns.count(column) > 1}):
            raise ComfyError(f"{doubles[0]!r} is in two of {', '.join(sorted(block))}: leave it in one.")
        for values in itertools.product(*grid.values()):
            yield fixed | row | dict(zip(grid, values, strict=True))


def _rows_side_by_side(listed: Any) -> list[Row]:
    if isinstance(listed, list):
        return [_columns(row, "list") for row in listed]
    columns = {column: _values(values, column) for column, values in _columns(listed, "list").items()}
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{column} has {length}" for column, length in lengths.items())
        raise ComfyError(f'the lists under "list" must be of one length: {told} values.')
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _columns(columns: Any, part: str) -> Row:
    if not isinstance(columns, Mapping):
        raise ComfyError(f'expected "{part}" to hold lines like  node.input: …, got {columns!r}.')
    return _without_doubles([(str(column).strip(), value) for column, value in columns.items()])


def _values(values: Any, column: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ComfyError(
            f"expected a list of values for {column!r}, like [1, 2], got {values!r}. One value for all "
            'runs belongs under "set".'
        )
    return values
