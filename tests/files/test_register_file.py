"""Registries as files: nothing is lost, nothing malformed gets in, nothing outside the output folder is read."""

import copy
import json
import os

import folder_paths
import pytest
from coherence.attention.registry import (
    CHOICES,
    ORDERS,
    PRECISIONS,
    AttentionRegistry,
    Figures,
    Layer,
    Measurement,
    Ranking,
)
from coherence.files.registry_file import SUFFIX, RegistryFileError, from_json, load, save, to_json
from coherence.nodes.entropy_register import LoadAttentionRegistry, SaveAttentionRegistry
from coherence.techniques.entropy import Energy
from hypothesis import given
from hypothesis import strategies as st
from register_runs import KINDS, layer, registry

SOME = registry([layer(0, "spatial", 0.5), layer(1, "cross", 0.25)])
energies = st.floats(0, 1e12)
figures = st.builds(
    Figures,
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.builds(Energy, energies, energies, energies),
)
measurements = st.builds(
    lambda measured, *others: Measurement(tuple(measured), tuple(measured.values()), *others),
    st.dictionaries(st.integers(0, 99), st.floats(0, 1e4), min_size=1),
    st.sampled_from(PRECISIONS),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(1, 999)).map(tuple),
)
rankings = st.builds(Ranking, st.sampled_from(CHOICES), st.sampled_from(ORDERS), st.integers(0, 99), st.floats(0, 100))
# Surrogates are no text that a file could hold.
texts = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def registries(draw) -> AttentionRegistry:
    measurement = draw(st.none() | measurements)
    names = draw(st.lists(texts.filter(bool), unique=True, max_size=5))
    layers = tuple(
        Layer(
            name,
            order,
            draw(st.sampled_from(KINDS)),
            draw(st.integers(1, 64)),
            None if measurement is None else draw(figures),
            draw(st.booleans()),
        )
        for order, name in enumerate(names)
    )
    return AttentionRegistry(draw(texts), draw(texts), layers, draw(rankings | texts), measurement)


@pytest.fixture
def output_folder(tmp_path, monkeypatch):
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


@given(registries())
def test_reading_gives_what_was_written(written):
    assert from_json(to_json(written)) == written


def test_a_file_gives_what_was_saved_and_leaves_nothing_else(tmp_path):
    save(SOME, tmp_path / "a.json")
    save(SOME, tmp_path / "a.json")
    assert load(tmp_path / "a.json") == SOME
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_save_that_fails_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.json"
    save(SOME, path)
    not_finite = registry([layer(0, "spatial", float("nan"))])
    with pytest.raises(ValueError, match="JSON"):
        save(not_finite, path)
    assert load(path) == SOME
    assert os.listdir(tmp_path) == ["a.json"]


# Malformed files ----------------------------------------------------------------------------------------------------


def places(value, path=()):
    """The path to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


CONTENT = json.loads(to_json(SOME))
PLACES = list(places(CONTENT))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(PLACES), json_values)
def test_a_changed_value_is_refused_or_read_as_it_stands(place, value):
    content = copy.deepcopy(CONTENT)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        read = from_json(json.dumps(content))
    except RegistryFileError:
        return
    assert from_json(to_json(read)) == read


@given(st.sampled_from([place for place in PLACES if isinstance(place[-1], str)]))
def test_a_missing_value_is_refused_by_name_unless_it_can_be_computed(place):
    content = copy.deepcopy(CONTENT)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    since = ("by", "live", "per_head", "entropy_by_head", "entropy_by_step", "damage", "selected_heads")
    if place[-1] in ("energy_proportion", *since):  # older files lack some of these
        assert from_json(json.dumps(content)) == SOME
        return
    with pytest.raises(RegistryFileError, match="figures at all" if place[-1] == "entropy" else place[-1]):
        from_json(json.dumps(content))


@given(st.text() | json_values.map(json.dumps))
def test_any_other_text_is_refused(text):
    with pytest.raises(RegistryFileError):
        from_json(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version: expected 1, got 2"),
        ({"version": 10**3000}, r"version: expected 1, got 1000\d*\.+0+; update"),
        ({"format": "x"}, "format: expected 'coherence attention registry', got 'x'"),
        ({"sites": {}}, r"sites: expected a list, got \{\}"),
        (
            {"sites": [CONTENT["sites"][0] | {"entropy": 1.5}]},
            r"sites\[0\]: entropy: expected at most 1.0, got 1.5",
        ),
        ({"sites": [CONTENT["sites"][0] | {"heads": True}]}, r"sites\[0\]: heads: .*got True"),
        (
            {"sites": [CONTENT["sites"][0] | {"kind": "global"}]},
            r"sites\[0\]: kind: expected one of 'spatial', .*got 'global'",
        ),
        ({"sites": [CONTENT["sites"][0], CONTENT["sites"][0] | {"order": 1}]}, "a name occurs twice"),
        ({"sites": [CONTENT["sites"][1]]}, r"sites\[0\]: order: expected 0, its place"),
        ({"measurement": None}, "figures at all of them if there is a measurement"),
        ({"measurement": CONTENT["measurement"] | {"steps": []}}, "measurement: steps: expected at least 1"),
        ({"selection": {"kind": "cross"}}, "selection: kind: expected one of 'all'"),
        ({"selection": 3}, "selection: expected an object or a text, got 3"),
    ],
)
def test_the_reason_says_where_and_what(change, reason):
    with pytest.raises(RegistryFileError, match=reason):
        from_json(json.dumps(CONTENT | change))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "utf-8"),
        (to_json(SOME).encode()[:200], "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 10_000, "not valid JSON"),
        (b" " * (4 * 2**20 + 1), "at most 4,194,304 bytes"),
    ],
    ids=["empty", "binary", "cut off", "deep", "many digits", "huge"],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, content, reason):
    path = tmp_path / f"broken{SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(RegistryFileError, match=rf"broken{SUFFIX} cannot be loaded: .*{reason}"):
        load(path)


# The nodes ----------------------------------------------------------------------------------------------------------


def test_saved_registries_are_numbered_listed_and_loaded(output_folder):
    saved = [SaveAttentionRegistry.execute(SOME, "models/demo").ui["registries"][0] for _ in range(2)]
    assert [entry["filename"] for entry in saved] == [f"demo_0000{i}_{SUFFIX}" for i in (1, 2)]
    (listed,) = LoadAttentionRegistry.define_schema().inputs
    assert listed.options == [f"models/{entry['filename']}" for entry in saved]
    assert LoadAttentionRegistry.validate_inputs(listed.options[1]) is True
    assert LoadAttentionRegistry.execute(listed.options[1])[0] == SOME


def test_a_file_that_changes_is_loaded_again(output_folder):
    SaveAttentionRegistry.execute(SOME, "demo")
    file = f"demo_00001_{SUFFIX}"
    before = LoadAttentionRegistry.fingerprint_inputs(file)
    assert LoadAttentionRegistry.fingerprint_inputs(file) == before
    save(registry([layer(0, "joint", 0.1)]), output_folder / file)
    assert LoadAttentionRegistry.fingerprint_inputs(file) != before


@pytest.mark.parametrize("prefix", ["../demo", "a/../../demo"])
def test_nothing_is_saved_outside_the_output_folder(output_folder, prefix):
    with pytest.raises(Exception, match="outside the output folder"):
        SaveAttentionRegistry.execute(SOME, prefix)
    assert os.listdir(output_folder.parent) == ["output"]


def test_nothing_outside_the_output_folder_is_loaded(output_folder):
    outside = output_folder.parent / f"secret{SUFFIX}"
    save(SOME, outside)
    (output_folder / f"link{SUFFIX}").symlink_to(outside)
    (output_folder / "plain.json").write_text(to_json(SOME), "utf-8")
    for file in (f"../secret{SUFFIX}", str(outside), f"link{SUFFIX}", "plain.json", "missing" + SUFFIX, "\0", "", "."):
        with pytest.raises(FileNotFoundError, match="expected a saved registry in the output folder"):
            LoadAttentionRegistry.execute(file)
        assert "expected a saved registry" in LoadAttentionRegistry.validate_inputs(file)
