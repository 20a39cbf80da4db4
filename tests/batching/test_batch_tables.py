"""Tables of variations, as files of every kind write them."""

import csv
import io
import itertools
import json

import pytest
import yaml
from coherence.batching.tables import expand, read_csv, read_table
from coherence.client.errors import ComfyError
from hypothesis import given
from hypothesis import strategies as st

COLUMNS = st.text("abc.:ü ", min_size=1, max_size=6).map(lambda name: f"x{name}y")
VALUES = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text("aé1", max_size=3))
GRIDS = st.dictionaries(COLUMNS, st.lists(VALUES, min_size=1, max_size=3), max_size=3)


@given(grid=GRIDS, fixed=st.dictionaries(COLUMNS, VALUES, max_size=2), count=st.integers(1, 4))
def test_a_grid_is_run_in_every_combination_with_every_row_of_the_list(grid, fixed, count):
    fixed = {f"set {column}": value for column, value in fixed.items()}
    rows = expand({"set": fixed, "list": {"n.seed": list(range(count))}, "grid": grid})
    combinations = list(itertools.product(range(count), *grid.values()))
    assert [tuple(row[column] for column in ("n.seed", *grid)) for row in rows] == combinations
    assert all(row.items() >= fixed.items() for row in rows)


@given(grid=GRIDS.filter(bool))
def test_yaml_and_json_say_the_same(grid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    (folder / "a.yaml").write_text(yaml.safe_dump({"grid": grid}, allow_unicode=True, sort_keys=False), "utf-8")
    (folder / "a.json").write_text(json.dumps({"grid": grid}), "utf-8")
    assert read_table(folder / "a.yaml") == read_table(folder / "a.json")


@given(
    rows=st.lists(st.lists(st.text("ab,;\t\"' \n1é", max_size=5), min_size=2, max_size=2), min_size=1, max_size=4),
    delimiter=st.sampled_from(",;\t"),
)
def test_a_spreadsheets_cells_come_back_and_empty_ones_change_nothing(rows, delimiter):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["a.x", "b.y"], *rows])
    expected = [dict(zip(["a.x", "b.y"], row, strict=True)) for row in rows if any(row)]
    assert read_csv(text.getvalue()) == [{key: cell for key, cell in row.items() if cell} for row in expected]


def test_a_list_may_be_written_run_by_run_and_tables_one_after_the_other():
    table = [{"list": [{"a.x": 1}, {"b.y": 2}]}, {"grid": {"a.x": [3]}}]
    assert expand(table) == [{"a.x": 1}, {"b.y": 2}, {"a.x": 3}]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "a.x,b.y\n\n", "is empty"),
        ("a.csv", "a.x,a.x\n1,2\n", "'a.x' is there twice"),
        ("a.csv", "a.x,\n1,2\n", "column 2 has no name"),
        ("a.csv", "a.x,b.y\n1,2,3\n", "row 1 has 3 cells"),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "grid: {a.x: []}", "expected a list of values for 'a.x'"),
        ("a.yaml", "grid: {a.x: 1}", "expected a list of values for 'a.x'"),
        ("a.yaml", "a.x: [1, 2]", 'expected "set"'),
        ("a.yaml", "list: {a.x: [1, 2], b.y: [1]}", "a.x has 2, b.y has 1"),
        ("a.yaml", "set: {a.x: 1}\ngrid: {a.x: [1]}", "'a.x' is in two of grid, set"),
        ("a.yaml", "grid: {a.x: [1], a.x: [2]}", "'a.x' is there twice"),
        ("a.yaml", "grid: [", "is not valid YAML"),
        ("a.json", '{"grid": {"a.x": [1], "a.x": [2]}}', "'a.x' is there twice"),
        ("a.yaml", "grid: {[a, b]: [1]}", "expected names such as KSampler.steps, got ['a', 'b']"),
        ("a.yaml", "grid: {a.x: [1], ' a.x': [2]}", "'a.x' is there twice"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[" * 100_000, "is not valid JSON"),
        ("a.csv", 'a.x\n1\n"cir"cle\n', "line 3 is not valid CSV"),
        ("a.csv", 'a.x\n"open\n', "is not valid CSV"),
        ("a.txt", "", "ends in '.txt'"),
    ],
)
def test_a_table_that_is_not_clear_is_refused_with_its_reason(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ComfyError) as refused:
        read_table(tmp_path / name)
    assert complaint in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


def test_separators_in_quotes_separate_nothing():
    assert read_csv('"KSampler, the first, of all.steps";B.y;C.z\n1;2;3\n') == [
        {"KSampler, the first, of all.steps": "1", "B.y": "2", "C.z": "3"}
    ]


def test_yaml_may_take_over_what_is_written_elsewhere(tmp_path):
    (tmp_path / "a.yaml").write_text("- set: &all {a.x: 1}\n- set: {<<: *all, b.y: 2}\n")
    assert read_table(tmp_path / "a.yaml") == [{"a.x": 1}, {"a.x": 1, "b.y": 2}]


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ComfyError, match=r"none\.csv cannot be read: No such file"):
        read_table(tmp_path / "none.csv")


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.csv").write_bytes("a.x\n1\n".encode("utf-8-sig"))
    assert read_table(tmp_path / "a.csv") == [{"a.x": "1"}]
