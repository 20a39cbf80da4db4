"""Apply the rows of a table to a prompt: find the inputs that are meant, and hold the values to their types."""

import copy
import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..client.errors import ComfyError
from ..client.server import Json
from ..client.workflow import input_kind, ordered_inputs
from .tables import Cell, Row

_SCALARS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"}
_DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
_SEEDS = ("seed", "noise_seed")
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_MOST_SHOWN = 20


@dataclass(frozen=True)
class Run:
    """A prompt to be run, and what it is called."""

    number: int
    """From 1, in the order of the table."""
    values: Row
    """What the table gave, by column."""
    prompt: Json
    key: str
    """Names the run by all that the server is asked to do."""
    label: str = ""
    """What tells it from the others, in one line."""

    @property
    def seeds(self) -> Row:
        """Every seed of the prompt, varied or not."""
        found = {}
        for node_id, node in self.prompt.items():
            for name in _SEEDS:
                if isinstance(node["inputs"].get(name), int):
                    found[f"{title(self.prompt, node_id)} ({node_id}).{name}"] = node["inputs"][name]
        return found


def title(prompt: Json, node_id: str) -> str:
    """What the user calls a node."""
    node = prompt[node_id]
    return (node.get("_meta") or {}).get("title") or node["class_type"]


def make_runs(prompt: Json, rows: Sequence[Row], object_info: Json) -> list[Run]:
    """A run for every row; those that would ask for the same twice are made once.

    Raises:
        ComfyError: a column names no input, a row has two columns for one, or a value is none that it takes.
    """
    targets = {column: find_input(column, prompt) for row in rows for column in row}
    runs: dict[str, Run] = {}
    for number, row in enumerate(rows, start=1):
        varied = copy.deepcopy(prompt)
        values = {}
        _require_apart(row, targets, number)
        # An input that a choice brings along, "mode.size", comes after the choice, "mode".
        for column in sorted(row, key=lambda column: targets[column][1].count(".")):
            node_id, name = targets[column]
            try:
                values[column] = _set(varied[node_id], name, row[column], object_info)
            except ComfyError as error:
                raise ComfyError(f"Row {number} of the table, {column}: {error}") from error
        run = Run(len(runs) + 1, {column: values[column] for column in row}, varied, run_key(varied))
        runs.setdefault(run.key, run)
    return _labelled(list(runs.values()))


def _require_apart(row: Row, targets: Mapping[str, tuple[str, str]], number: int) -> None:
    """ComfyError where two columns of a row mean the same input."""
    columns: dict[tuple[str, str], str] = {}
    for column in row:
        other = columns.setdefault(targets[column], column)
        if other != column:
            raise ComfyError(
                f"Row {number} of the table sets one input twice: {other!r} and {column!r} both mean input "
                f"{targets[column][1]!r} of node {targets[column][0]}. Expected one column for each input: remove one."
            )


def _labelled(runs: list[Run]) -> list[Run]:
    axes = varied([run.values for run in runs])
    names = short_names(list(axes))

    def label(run: Run) -> str:
        said = [f"{names[column]} = {one_line(value)}" for column, value in run.values.items() if column in axes]
        return ", ".join(said) or "as it is"

    return [replace(run, label=label(run)) for run in runs]


def varied(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Column → its values in the order in which they come, for columns that differ between runs.

    A run that leaves a column out has the workflow's own value there: None.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    found = {column: unique([row.get(column) for row in rows]) for column in columns}
    return {column: values for column, values in found.items() if len(values) > 1}


def one_line(value: Any) -> str:
    """A value as it is shown: a prompt may have lines, and half a surrogate pair is no letter of any font."""
    return " ".join(str(value).split()).encode("utf-8", "replace").decode()


def unique(values: Sequence[Any]) -> list[Any]:
    """Each value once, in order; True is not 1."""
    return list({(type(value), repr(value)): value for value in values}.values())


def short_names(columns: Sequence[str]) -> dict[str, str]:
    """Columns without the node, where that is clear."""
    short = [column.rpartition(".")[2] for column in columns]
    return {column: name if short.count(name) == 1 else column for column, name in zip(columns, short, strict=True)}


def run_key(prompt: Json) -> str:
    """The same for prompts that do the same, whatever their nodes are called and in whatever order they stand."""
    plain = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_input(column: str, prompt: Json) -> tuple[str, str]:
    """Node id and name of the input that ``column`` means: ``node.input``, the node by id, title or class.

    Titles and inputs may hold dots themselves.
    """
    dots = [place for place, letter in enumerate(column) if letter == "."]
    readings = [(_nodes(column[:dot].strip(), prompt), column[dot + 1 :].strip()) for dot in dots]
    readings = [(nodes, name) for nodes, name in readings if nodes and name]
    if not readings:
        why = "no node has that title or id" if dots else "expected node.input, such as KSampler.steps"
        raise ComfyError(f"The table varies {column!r}: {why}. The workflow has:\n{_listed(prompt, prompt)}")
    fitting = [(nodes, name) for nodes, name in readings if any(name in prompt[node]["inputs"] for node in nodes)]
    nodes, name = (fitting or readings)[0]
    if len(nodes) > 1:
        raise ComfyError(
            f"The table varies {column!r}, and {len(nodes)} nodes are called so: name one by its id, like "
            f"{nodes[0]}.{name}, or give them different titles. They are:\n{_listed(nodes, prompt)}"
        )
    return nodes[0], name


def _nodes(name: str, prompt: Json) -> list[str]:
    """Ids of the nodes of a name: an id is stronger than a title, a title stronger than a class."""
    if name in prompt:
        return [name]
    titled = [node_id for node_id in prompt if title(prompt, node_id) == name]
    return titled or [node_id for node_id, node in prompt.items() if node["class_type"] == name]


def _listed(node_ids: Sequence[str] | Json, prompt: Json) -> str:
    lines = []
    for node_id in node_ids:
        inputs = [name for name, value in prompt[node_id]["inputs"].items() if not is_link(value)]
        kind = prompt[node_id]["class_type"]
        lines.append(f"  {node_id:>4}  {title(prompt, node_id)} ({kind}): {', '.join(inputs) or 'only links'}")
    return "\n".join(lines)


def is_link(value: Any) -> bool:
    """Whether an input of a prompt comes from another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def input_specs(node: Json, object_info: Json) -> dict[str, list]:
    """Every input that a node may have, those that its choices bring along among them."""
    if node["class_type"] not in object_info:
        return {}
    found = {}

    def walk(inputs: Json, prefix: str) -> None:
        for name, spec in ordered_inputs(inputs):
            found[prefix + name] = spec
            kind, options = input_kind(spec)
            if kind == _DYNAMIC_COMBO:
                chosen = node["inputs"].get(prefix + name)
                for option in options["options"]:
                    if option["key"] == chosen:
                        walk(option["inputs"], f"{prefix}{name}.")

    walk(object_info[node["class_type"]]["input"], "")
    return found


def _set(node: Json, name: str, value: Any, object_info: Json) -> Any:
    """Set an input; returns the value as the server gets it."""
    specs = input_specs(node, object_info)
    before = node["inputs"].get(name)
    if is_link(before):
        raise ComfyError(f"a link from node {before[0]} feeds it. Vary that node, or take the link away.")
    if name in specs:
        value = checked(value, specs[name])
    elif name not in node["inputs"]:
        known = [each for each, spec in specs.items() if input_kind(spec)[0] in {*_SCALARS, _DYNAMIC_COMBO}]
        raise ComfyError(f"{node['class_type']} has no such input. It has: {', '.join(known) or 'none to be set'}.")
    node["inputs"][name] = value
    return value


def checked(value: Any, spec: list) -> Any:
    """``value`` as an input of that kind takes it.

    Raises:
        ComfyError: it is of another type, outside the limits, or none of the choices.
    """
    kind, options = input_kind(spec)
    if kind in ("COMBO", _DYNAMIC_COMBO):
        return _choice(value, choices(spec))
    kinds = [each for each in kind.split(",") if each in _SCALARS]
    if kind == "*":
        return str(value) if isinstance(value, Cell) else value
    if not kinds:
        raise ComfyError(f"it takes a link of type {kind}, not a value.")
    for each in kinds:
        converted = _convert(value, each)
        if converted is not None:
            return _within(converted, options) if each in ("INT", "FLOAT") else converted
    hint = " Put it in quotes to make it text." if "STRING" in kinds else ""
    raise ComfyError(f"expected {' or '.join(map(_described, kinds))}, got {value!r}.{hint}")


def choices(spec: list) -> list[Any]:
    """What a list of choices offers; empty where the page asks elsewhere for them."""
    kind, options = input_kind(spec)
    if kind == _DYNAMIC_COMBO:
        return [option["key"] for option in options["options"]]
    return spec[0] if isinstance(spec[0], list) else options.get("options") or []


def _described(kind: str) -> str:
    return {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false", "STRING": "text"}[kind]


def _convert(value: Any, kind: str) -> Any:
    """``value`` as a ``kind``; None if it is of another type."""
    if kind == "STRING":
        return str(value) if isinstance(value, str) else None
    if kind == "BOOLEAN":
        if isinstance(value, Cell):
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(value.strip().lower())
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:  # YAML, too, reads 1e-3 as text
        # Not by way of a float: a seed of 64 bits would lose its last ones.
        number = int(value) if isinstance(value, (int, str)) else value
    except ValueError:
        try:
            number = float(value)
        except ValueError:
            return None
    if not math.isfinite(number):
        return None
    if kind == "INT":
        return int(number) if number == int(number) else None
    return float(number)


def _within(value: float, options: Json) -> float:
    low, high = options.get("min"), options.get("max")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ComfyError(f"expected a value from {low} to {high}, got {value}.")
    return value


def _choice(value: Any, offered: list[Any]) -> Any:
    if not offered or value in offered:
        return str(value) if isinstance(value, Cell) else value
    if not isinstance(value, bool):
        for choice in offered:
            if str(choice) == str(value):
                return choice
    near = difflib.get_close_matches(str(value), list(map(str, offered)), _MOST_SHOWN)
    shown = [*near, *(str(choice) for choice in offered if str(choice) not in near)]
    more = f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    raise ComfyError(f"{str(value)!r} is not one of its choices: {', '.join(shown[:_MOST_SHOWN])}{more}.")


def require_nodes(prompt: Json, object_info: Json) -> None:
    """ComfyError names the nodes of a prompt that the server does not know."""
    unknown = sorted({node["class_type"] for node in prompt.values()} - object_info.keys())
    if unknown:
        raise ComfyError(f"it does not know these nodes: {', '.join(unknown)}. Install the packs they come from there.")


def doubtful_choices(prompt: Json, object_info: Json) -> list[str]:
    """Inputs of the workflow itself whose value this server does not offer, such as a model that it lacks.

    Only a doubt: a node may take more than it offers, such as the path of an uploaded file.
    """
    doubts = []
    for node_id, node in prompt.items():
        for name, spec in input_specs(node, object_info).items():
            value, offered = node["inputs"].get(name), choices(spec) if input_kind(spec)[0] == "COMBO" else []
            is_uploaded = any(flag.endswith("_upload") for flag in input_kind(spec)[1])
            if isinstance(value, str) and offered and value not in offered and not is_uploaded:
                doubts.append(f"{title(prompt, node_id)} ({node_id}).{name}: it offers no {value!r}")
    return doubts
