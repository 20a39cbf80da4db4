"""A workflow as ComfyUI's canvas saves it (UI format) becomes a prompt that its server runs (API format).

Does what the frontend's ``graphToPrompt`` does, so that a saved workflow runs without a browser.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .canvas import ALONE, BROADCASTS, EXPORT, GETTERS, PASSING, PRIMITIVE
from .errors import ComfyError

Json = dict[str, Any]
_MUTED, _BYPASSED = 2, 4
_SUBGRAPH_INPUT, _SUBGRAPH_OUTPUT = -10, -20
_DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
_EMPTY = {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": "", "IMAGECOMPARE": ["", ""]}
_WIDGETS = {
    *_EMPTY,
    *("COMBO", "COLOR", "COLORS", "BOUNDING_BOX", "BOUNDING_BOXES", "CURVE", "RANGE", "PAINTER", "TEXTAREA"),
    *("MARKDOWN", "CHART", "GALLERIA", _DYNAMIC_COMBO),
}
"""Types of inputs that the canvas shows as a widget; all others are sockets."""


@dataclass(frozen=True)
class _Link:
    origin: Any
    origin_slot: int
    target: Any
    target_slot: int


@dataclass(frozen=True)
class _Value:
    value: Any


@dataclass
class _Scope:
    """The nodes and links of the canvas or of one use of a subgraph."""

    nodes: dict[Any, Json]
    links: dict[Any, _Link]
    path: str = ""
    parent: "_Scope | None" = None
    node: Json = field(default_factory=dict)
    """The node in ``parent`` that stands for this subgraph."""

    @classmethod
    def read(cls, graph: Json, path: str = "", parent: "_Scope | None" = None, node: Json | None = None) -> "_Scope":
        """Links are arrays on the canvas and objects in subgraphs."""
        links = {}
        for link in graph.get("links", ()):
            if isinstance(link, dict):
                ends = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
                links[link["id"]] = _Link(*ends)
            else:
                links[link[0]] = _Link(*link[1:5])
        return cls({item["id"]: item for item in graph["nodes"]}, links, path, parent, node or {})


def read_workflow(path: Path) -> Json:
    """The JSON in a file; ComfyError says why there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ComfyError(f"The workflow {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ComfyError(f"The workflow {path} is not valid JSON: {error}.") from error


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """The API format of a workflow in UI format.

    Args:
        workflow: What the canvas saves: ``nodes``, ``links``, perhaps ``definitions.subgraphs``.
        object_info: The server's ``/object_info``: which inputs every node has.

    Returns:
        Node id → ``inputs``, ``class_type`` and ``_meta.title``. Muted and bypassed nodes, notes and groups
        are left out; reroutes, set and get nodes, primitives, bypasses and subgraphs are resolved.

    Raises:
        ComfyError: it is no UI workflow, the server does not know its nodes, or only the page knows its links.
    """
    if not isinstance(workflow.get("nodes"), list):
        raise ComfyError('This is not a workflow in UI format: expected a JSON object with a list "nodes".')
    try:
        return _Converter(workflow, object_info).convert()
    except RecursionError as error:
        raise ComfyError(
            "Links of the workflow form a loop. Look at its reroutes, and at its set and get nodes."
        ) from error


class _Converter:
    def __init__(self, workflow: Json, object_info: Json) -> None:
        definitions = workflow.get("definitions") or {}
        self._subgraphs = {graph["id"]: graph for graph in definitions.get("subgraphs", ())}
        self._object_info = object_info
        self._root = _Scope.read(workflow)
        self._inner: dict[str, _Scope] = {}

    def convert(self) -> Json:
        active = list(self._active(self._root))
        unknown = sorted({node["type"] for _, node in active} - self._object_info.keys())
        if unknown:
            raise ComfyError(
                f"The workflow uses nodes that this ComfyUI does not know: {', '.join(unknown)}. Install the "
                "packs they come from, mute them, or see the server's log if one of them failed to load. If some of "
                f"them exist on the canvas alone, {EXPORT}."
            )
        if unseen := sorted({node["type"] for _, node in active if node["type"].startswith(BROADCASTS)}):
            raise ComfyError(f"Only ComfyUI's page knows what {', '.join(unseen)} is linked to: {EXPORT}.")
        prompt = {_id(scope, node): self._node(scope, node) for scope, node in active}
        for entry in prompt.values():
            inputs = entry["inputs"]
            entry["inputs"] = {
                name: value
                for name, value in inputs.items()
                if not (isinstance(value, list) and value[0] not in prompt)
            }
        return prompt

    def _active(self, scope: _Scope) -> Iterator[tuple[_Scope, Json]]:
        for node in scope.nodes.values():
            if node.get("mode") in (_MUTED, _BYPASSED) or node["type"] in ALONE:
                continue
            if node["type"] in self._subgraphs:
                yield from self._active(self._inside(scope, node))
            else:
                yield scope, node

    def _inside(self, scope: _Scope, node: Json) -> _Scope:
        path = _id(scope, node)
        if path not in self._inner:
            self._inner[path] = _Scope.read(self._subgraphs[node["type"]], f"{path}:", scope, node)
        return self._inner[path]

    def _node(self, scope: _Scope, node: Json) -> Json:
        info = self._object_info[node["type"]]
        inputs = dict(self._widget_values(node, info))
        for slot, entry in enumerate(node.get("inputs") or ()):
            source = self._resolve_input(scope, node, slot, entry.get("type", "*"))
            if isinstance(source, _Value):
                inputs[entry["name"]] = _wrap(entry.get("type", "*"), source.value)
            elif source is not None:
                inputs[entry["name"]] = list(source)
        title = node.get("title") or info.get("display_name") or node["type"]
        return {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}

    def _widget_values(self, node: Json, info: Json) -> Iterator[tuple[str, Any]]:
        saved = node.get("widgets_values") or []
        by_name = saved if isinstance(saved, dict) else None
        remaining = iter(() if by_name is not None else saved)

        def walk(inputs: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
            for name, spec in ordered_inputs(inputs, info if not prefix else {}):
                kind, options = input_kind(spec)
                if kind not in _WIDGETS or options.get("forceInput"):
                    continue
                default = _default(kind, spec, options)
                value = by_name.get(prefix + name, default) if by_name is not None else next(remaining, default)
                if value is None and kind == "COMBO":
                    value = default  # saved where there was nothing to choose from
                yield prefix + name, _wrap(kind, value)
                # The canvas saves "fixed", "randomize" … as one more value after the widget it controls.
                if _has_control(kind, prefix + name, options):
                    next(remaining, None)
                    if kind == "COMBO":
                        next(remaining, None)  # and after a list of choices, the filter for them
                if kind == _DYNAMIC_COMBO:
                    chosen = [option["inputs"] for option in options["options"] if option["key"] == value]
                    for nested in chosen:
                        yield from walk(nested, f"{prefix}{name}.")

        yield from walk(info["input"])

    def _resolve_input(self, scope: _Scope, node: Json, slot: int, kind: str) -> _Value | tuple[str, int] | None:
        """What feeds an input: a value, (node id, output), or None where nothing does."""
        link = scope.links.get(node["inputs"][slot].get("link"))
        if link is None:
            return None
        if link.origin == _SUBGRAPH_INPUT and scope.parent is not None:
            return self._resolve_boundary(scope, scope.parent, link.origin_slot, kind)
        origin = scope.nodes.get(link.origin)  # damaged workflows keep links of nodes that are gone
        return None if origin is None else self._resolve_output(scope, origin, link.origin_slot, kind)

    def _resolve_boundary(self, scope: _Scope, parent: _Scope, slot: int, kind: str) -> _Value | tuple[str, int] | None:
        """What feeds an input of a subgraph from outside; None leaves a widget inside its own value."""
        names = [entry["name"] for entry in self._subgraphs[scope.node["type"]]["inputs"]]
        outside = [entry["name"] for entry in scope.node.get("inputs") or ()]
        if names[slot] in outside:
            source = self._resolve_input(parent, scope.node, outside.index(names[slot]), kind)
            if source is not None:
                return source
        # The node's values are those of the inputs that lead to a widget, in order. Old workflows, which list
        # "proxyWidgets", keep them inside.
        values = (
            [] if "proxyWidgets" in (scope.node.get("properties") or {}) else scope.node.get("widgets_values") or []
        )
        shown = sorted({link.origin_slot for link in scope.links.values() if _leads_to_widget(scope, link)})
        return _Value(values[shown.index(slot)]) if slot in shown[: len(values)] else None

    def _resolve_output(self, scope: _Scope, node: Json, slot: int, kind: str) -> _Value | tuple[str, int] | None:
        if node.get("mode") == _MUTED:
            return None
        if node.get("mode") == _BYPASSED:
            passing = _bypass_slot(node, slot, kind)
            return None if passing is None else self._resolve_input(scope, node, passing, kind)
        if node["type"] == PRIMITIVE:
            return next((_Value(value) for value in node.get("widgets_values") or ()), None)
        if node["type"] in PASSING:
            return self._resolve_input(scope, node, 0, kind)
        if node["type"] in GETTERS:
            return self._resolve_getter(scope, node, kind)
        if node["type"] in self._subgraphs:
            inner = self._inside(scope, node)
            ends = (link for link in inner.links.values() if link.target == _SUBGRAPH_OUTPUT)
            link = next((link for link in ends if link.target_slot == slot), None)
            if link is None:
                return None
            if link.origin == _SUBGRAPH_INPUT:
                return self._resolve_boundary(inner, scope, link.origin_slot, kind)
            return self._resolve_output(inner, inner.nodes[link.origin], link.origin_slot, kind)
        return _id(scope, node), slot

    def _resolve_getter(self, scope: _Scope, node: Json, kind: str) -> _Value | tuple[str, int] | None:
        """What feeds the set node of the same name, in the same graph or in one around it."""
        setter, name = GETTERS[node["type"]], _name_in(node)
        around: _Scope | None = scope
        while around is not None:
            for other in around.nodes.values():
                if other["type"] == setter and _name_in(other) == name:
                    return self._resolve_input(around, other, 0, kind)
            around = around.parent
        raise ComfyError(f"Node {_id(scope, node)} ({node['type']}) asks for {name!r}, and no {setter} has that name.")


def _name_in(node: Json) -> Any:
    """Of a set or get node; None where it has none."""
    return next(iter(node.get("widgets_values") or ()), None)


def _id(scope: _Scope, node: Json) -> str:
    return f"{scope.path}{node['id']}"


def ordered_inputs(inputs: Json, info: Json | None = None) -> Iterator[tuple[str, list]]:
    """Name and spec of each input, in the order of the canvas; ``inputs`` is a part of ``info``."""
    order = (info or {}).get("input_order", {})
    for section in ("required", "optional"):
        specs = inputs.get(section, {})
        names = order.get(section, ())
        for name in sorted(specs, key=lambda name: names.index(name) if name in names else len(names)):
            yield name, specs[name]


def input_kind(spec: list) -> tuple[str, Json]:
    """Type and options of an input; old nodes give a list of choices in place of the type."""
    options = spec[1] if len(spec) > 1 else {}
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    return options.get("widgetType") or kind, options


def _default(kind: str, spec: list, options: Json) -> Any:
    """What the canvas shows where the workflow has no value: it was saved before the input was added."""
    if "default" in options:
        return options["default"]
    if kind == _DYNAMIC_COMBO:
        return options["options"][0]["key"]
    if kind == "COMBO":
        choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
        return choices[0] if choices else None
    return _EMPTY.get(kind)


def _has_control(kind: str, name: str, options: Json) -> bool:
    if kind == "INT":
        return bool(options.get("control_after_generate", name in ("seed", "noise_seed")))
    return kind == "COMBO" and bool(options.get("control_after_generate"))


def _wrap(kind: str, value: Any) -> Any:
    """A list would be read as a link by the server."""
    if not isinstance(value, list):
        return value
    return {"__type__": "CURVE", "__value__": value} if kind == "CURVE" else {"__value__": value}


def _leads_to_widget(scope: _Scope, link: _Link) -> bool:
    if link.origin != _SUBGRAPH_INPUT or link.target == _SUBGRAPH_OUTPUT:
        return False
    return bool(scope.nodes[link.target]["inputs"][link.target_slot].get("widget"))


def _fits(one: str, other: str) -> bool:
    """Whether two socket types connect; a type may be a comma-separated choice, "*" is any."""
    if "*" in (one, other) or not one or not other:
        return True
    return bool(set(str(one).upper().split(",")) & set(str(other).upper().split(",")))


def _bypass_slot(node: Json, slot: int, kind: str) -> int | None:
    """The input that a bypassed node passes on as its output ``slot``: the same place first, then by type."""
    inputs = [entry.get("type", "*") for entry in node.get("inputs") or ()]
    if kind in ("*", ""):
        return (slot if slot < len(inputs) else 0) if inputs else None
    output = node["outputs"][slot]["type"]
    if slot < len(inputs) and _fits(inputs[slot], output) and _fits(inputs[slot], kind):
        return slot
    exact = [index for index, name in enumerate(inputs) if name == kind]
    fitting = [index for index, name in enumerate(inputs) if _fits(name, output) and _fits(name, kind)]
    return next(iter(exact or fitting), None)
