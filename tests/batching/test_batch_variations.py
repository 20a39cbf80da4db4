"""What a table's columns mean in a prompt, by the inputs that a real server tells of."""

import pytest
from coherence.batching.tables import Cell, read_table
from coherence.batching.variations import find_input, make_runs, run_key
from coherence.client.errors import ComfyError
from coherence.hosting.provision import PACK
from hypothesis import given
from hypothesis import strategies as st

ZS2 = PACK / "workflows" / "zs2_text_to_video.json"


@pytest.fixture(scope="module")
def zs2(to_api):
    return to_api(ZS2)


def value_of(runs, node: str, name: str) -> list:
    return [run.prompt[node]["inputs"][name] for run in runs]


def test_a_node_is_meant_by_title_by_id_or_by_class(zs2, object_info):
    columns = {
        "Prompt.text": "a",
        "5.width": 64,
        "KSamplerSelect.sampler_name": "euler",
        "Dependency Noise (ZS²).kl": 0.5,
    }
    (run,) = make_runs(zs2, [columns], object_info)
    assert run.prompt["3"]["inputs"]["text"] == "a"
    assert run.prompt["5"]["inputs"]["width"] == 64
    assert run.prompt["11"]["inputs"]["sampler_name"] == "euler"
    assert run.prompt["6"]["inputs"]["kl"] == 0.5
    assert zs2["6"]["inputs"]["kl"] == 0.1, "the workflow itself stays as it is"


def test_cells_of_a_spreadsheet_become_what_the_input_takes(zs2, object_info):
    big = 2**64 - 1
    cells = {"10.steps": Cell("7"), "6.kl": "1e-1", "6.noise_seed": Cell(str(big)), "15.lossless": Cell("TRUE")}
    (run,) = make_runs(zs2, [cells], object_info)
    assert value_of([run], "10", "steps") == [7]
    assert value_of([run], "6", "kl") == [0.1]
    assert value_of([run], "6", "noise_seed") == [big], "no bit of a seed is lost"
    assert value_of([run], "15", "lossless") == [True]
    assert run.seeds == {"Dependency Noise (ZS²) (6).noise_seed": big}


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("Promt.text", "a", r"(?s)no node has that title or id.*3  Prompt \(CLIPTextEncode\): text"),
        ("text", "a", "expected node.input"),
        ("Prompt.txt", "a", "CLIPTextEncode has no such input. It has: text"),
        ("Prompt.text", 5, "expected text, got 5. Put it in quotes"),
        ("10.steps", "many", "expected a whole number, got 'many'"),
        ("10.steps", 2.5, "expected a whole number, got 2.5"),
        ("10.steps", True, "expected a whole number, got True"),
        ("10.steps", 0, "expected a value from 1 to 10000, got 0"),
        ("6.kl", "fast", "expected a number, got 'fast'"),
        ("6.kl", float("nan"), "expected a number, got nan"),
        ("11.sampler_name", "eulr", "'eulr' is not one of its choices: euler"),
        ("15.lossless", "maybe", "expected true or false"),
        ("13.samples", "x", "a link from node 12 feeds it"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(zs2, object_info, column, value, complaint):
    with pytest.raises(ComfyError, match=complaint):
        make_runs(zs2, [{column: value}], object_info)


def test_two_columns_for_one_input_are_refused(zs2, object_info):
    row = {"BasicScheduler.steps": 5, "6.kl": 0.1, "10.steps": 9}
    with pytest.raises(
        ComfyError, match=r"Row 2 .*'BasicScheduler.steps' and '10.steps' both mean .*'steps' of node 10"
    ):
        make_runs(zs2, [{"10.steps": 3}, row], object_info)


def test_a_title_that_two_nodes_have_is_refused_with_their_ids(object_info):
    encode = {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}, "_meta": {"title": "Text"}}
    prompt = {"1": {"class_type": "CoherenceDemoModel", "inputs": {"kind": "image"}}, "2": encode, "3": encode}
    with pytest.raises(ComfyError, match=r"(?s)2 nodes are called so: name one by its id, like 2\.text.*3  Text"):
        make_runs(prompt, [{"Text.text": "a"}], object_info)
    assert find_input("3.text", prompt) == ("3", "text")


def test_titles_and_inputs_may_hold_dots():
    inputs = {"mode": "a", "mode.size": 1}
    prompt = {"7": {"class_type": "Node", "inputs": inputs, "_meta": {"title": "ver. 1.5"}}}
    assert find_input("ver. 1.5.mode.size", prompt) == ("7", "mode.size")
    assert find_input("7.mode.size", prompt) == ("7", "mode.size")


def test_an_input_that_a_choice_brings_along_is_set_after_the_choice(object_info):
    node = {"class_type": "ResizeImageMaskNode", "inputs": {"input": ["1", 0], "resize_type": "scale by multiplier"}}
    specs = object_info["ResizeImageMaskNode"]["input"]["required"]["resize_type"]
    options = {option["key"]: option["inputs"]["required"] for option in specs[1]["options"]}
    row = {"2.resize_type.width": 32, "2.resize_type": "scale dimensions"}
    assert "width" in options["scale dimensions"]
    (run,) = make_runs({"2": node}, [row], object_info)
    assert run.prompt["2"]["inputs"]["resize_type.width"] == 32
    with pytest.raises(ComfyError, match="has no such input"):
        make_runs({"2": node}, [{"2.resize_type.width": 32}], object_info)


def test_rows_that_ask_for_the_same_are_one_run(zs2, object_info):
    rows = [{"6.kl": 0.1}, {"6.kl": Cell("0.10")}, {"DependencyNoise.kl": 0.2}]
    runs = make_runs(zs2, rows, object_info)
    assert [(run.number, run.values) for run in runs] == [(1, {"6.kl": 0.1}), (2, {"DependencyNoise.kl": 0.2})]


NODES = st.dictionaries(
    st.sampled_from("123"),
    st.fixed_dictionaries(
        {"class_type": st.sampled_from("AB"), "inputs": st.dictionaries(st.sampled_from("xy"), st.integers(0, 2))}
    ),
)


@given(one=NODES, other=NODES, name=st.text())
def test_a_key_names_what_is_asked_and_nothing_else(one, other, name):
    assert (run_key(one) == run_key(other)) == (one == other)
    renamed = {key: node | {"_meta": {"title": name}} for key, node in reversed(one.items())}
    assert run_key(renamed) == run_key(one)


@pytest.mark.parametrize(("name", "count"), [("zs2_grid", 6), ("zs2_prompts", 55)])
def test_the_example_tables_fit_the_workflow_that_they_are_for(zs2, object_info, name, count):
    runs = make_runs(zs2, read_table(PACK / "batching" / "examples" / f"{name}.yaml"), object_info)
    assert len({run_key(run.prompt) for run in runs}) == len(runs) == count
