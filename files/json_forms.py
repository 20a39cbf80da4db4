"""JSON that is held to a form: the form is a pydantic model, what does not fit it is told in one short sentence."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class JsonForm(BaseModel):
    """An object: each value of its own type, none is converted. Further names are passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ExactForm(JsonForm):
    """An object with these names and no others."""

    model_config = ConfigDict(extra="forbid")


def read_json(text: str) -> Any:
    """The value that ``text`` is JSON of. ValueError also for what is no JSON to everyone: a name that occurs twice,
    NaN and infinity, half a surrogate pair, nesting without end."""
    # Not by pydantic: of a name that occurs twice it silently takes the last.
    try:
        content = json.loads(text, object_pairs_hook=_unique)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # also a number of too many digits
        raise ValueError(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return content


@overload
def fitted(form: type[M], content: Any, name: str = "") -> M: ...
@overload
def fitted(form: TypeAdapter[T], content: Any, name: str = "") -> T: ...
def fitted(form: Any, content: Any, name: str = "") -> Any:
    """``content``, which came from :func:`read_json`, as ``form``.

    ValueError says where it first differs, what was expected and what is there; ``name`` is that of the whole.
    """
    try:
        return form.validate_python(content) if isinstance(form, TypeAdapter) else form.model_validate(content)
    except ValidationError as error:
        raise ValueError(_told(error.errors(include_url=False), content, name)) from None


def _told(errors: list[Any], content: Any, name: str) -> str:
    """``sites[0]: heads: expected a whole number, got True``."""
    first, place = errors[0], _place(errors[0]["loc"], content)
    where = ": ".join(filter(None, [name, place])) or "the file"
    if first["type"] == "missing":
        return f"{where}: {first['loc'][-1]!r} is missing"
    if first["type"] == "extra_forbidden":
        return f"{where}: expected no such name"
    here = [each for each in errors[:9] if _place(each["loc"], content) == place]  # a union has one for each member
    return f"{where}: expected {' or '.join(map(_expected, here))}, got {shown(first['input'])}"


def _place(location: tuple[Any, ...], content: Any) -> str:
    """``sites[0]: heads``."""
    place, value = "", content
    for part in location:  # it also names members of unions, which are not in the file
        if isinstance(value, dict) and part in value:
            place += f"{': ' if place else ''}{part if part.isprintable() and len(part) <= 80 else shown(part)}"
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place += f"[{part}]"
        else:
            continue
        value = value[part]
    return place


def _expected(error: Any) -> str:
    told = _EXPECTED.get(error["type"])
    return told(error.get("ctx", {})) if told else str(error["msg"]).removeprefix("Input should be ")


def shown(value: Any) -> str:
    """The beginning of ``value``, for messages: short and printable, whatever it is."""
    text = _REPR.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 40

_EXPECTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "string_type": lambda _: "a text",
    "bool_type": lambda _: "true or false",
    "list_type": lambda _: "a list",
    "dict_type": lambda _: "an object",
    "model_type": lambda _: "an object",
    "literal_error": lambda context: f"one of {context['expected']}",
    "greater_than_equal": lambda context: f"at least {context['ge']}",
    "less_than_equal": lambda context: f"at most {context['le']}",
    "less_than": lambda context: f"less than {context['lt']}",
    "too_long": lambda context: f"at most {context['max_length']} of them",
    "too_short": lambda context: f"at least {context['min_length']} of them",
    "string_too_short": lambda _: "a text that is not empty",
}
"""What is expected, by pydantic's type of error."""
