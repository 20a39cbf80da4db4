"""Whatever a file holds, a loader gives what a save would write again, or its own error, within seconds.

The suite tries some hundred files with each loader; ten thousand of each way to break a file with
``python3 host.py test -n 0 tests/files/test_loader_fuzz.py --hypothesis-profile=fuzz``.
"""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved_examples import GOOD, LOADERS

# Broken files -------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=8) | st.sampled_from(["../../x", "\0", "\ud800", "NaN", "F64", "I8", "x" * 5000, "[" * 3000])
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, 2**60, 2**63, 2**64, -1, 10**4000, 1e308, 0, True])
LEAVES = st.none() | NUMBERS | TEXTS
VALUES = LEAVES | st.lists(LEAVES, max_size=4) | st.dictionaries(TEXTS, LEAVES, max_size=4)
DEPTHS = {f"nested {depth} times": "[" * depth + "]" * depth for depth in (1, 80, 300, 900, 970, 990, 5000)}


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths to all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for key, inner in items for each in ((*path, key), *places(inner, (*path, key)))]


@st.composite
def changed(draw: Any, content: Any) -> str:
    """The JSON of ``content`` with some values replaced, moved, nested, left out, or there twice."""
    content, twice = copy.deepcopy(content), set()
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(places(content)))
        inner = content
        for each in path:
            inner = inner[each]
        match draw(st.sampled_from(["replace", "move", "nest", "leave out", "twice"])):
            case "replace":
                inner[key] = draw(VALUES)
            case "move":
                inner[key] = copy.deepcopy(draw(st.sampled_from([content, inner])))
            case "nest":
                inner[key] = draw(st.sampled_from(list(DEPTHS)))
            case "leave out" if len(places(content)) > 1:
                del inner[key]
            case _:
                twice.add(f"{json.dumps(key)}: ")
    text = json.dumps(content)
    for name in twice:
        text = text.replace(name, f"{name}0, {name}", 1)
    for name, nested in DEPTHS.items():
        text = text.replace(json.dumps(name), nested)
    return text


@st.composite
def spoiled(draw: Any, content: bytes) -> bytes:
    """``content`` with some bytes replaced, cut out or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = start + draw(st.sampled_from([0, 1, 2, 8, 100, len(data)]))
        data[start:stop] = draw(st.binary(max_size=12) | st.sampled_from([b'"', b"{", b"}", b"\xff" * 8, b"\0" * 8]))
    return bytes(data)


def restructured(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` with a changed JSON: all of it, or a safetensors file's header, and the JSON in its metadata."""
    if content.startswith(b"{"):
        return changed(json.loads(content)).map(str.encode)
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:end]), content[end:]
    name = next(name for name in ("form", "training", "run") if name in header["__metadata__"])
    inner = changed(json.loads(header["__metadata__"][name])).map(
        lambda text: json.dumps(header | {"__metadata__": header["__metadata__"] | {name: text}})
    )
    tails = st.just(data) | st.just(data) | spoiled(data)
    return st.builds(
        lambda text, tail: len(text).to_bytes(8, "little") + text.encode() + tail, changed(header) | inner, tails
    )


@pytest.mark.parametrize("name", LOADERS)
def test_what_was_saved_is_read(name):
    assert LOADERS[name].reads(GOOD[name])


@pytest.mark.parametrize("name", LOADERS)
@given(st.data())
def test_any_bytes_are_refused(name, data):
    assert not LOADERS[name].reads(data.draw(st.binary(max_size=300)))


@pytest.mark.parametrize("name", LOADERS)
@given(st.data())
def test_a_file_with_other_bytes_is_refused_or_sound(name, data):
    LOADERS[name].reads(data.draw(spoiled(GOOD[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
@given(st.data())
def test_a_file_of_another_structure_is_refused_or_sound(name, data):
    LOADERS[name].reads(data.draw(restructured(GOOD[name])))
