"""The soak's own parts: what it draws, what it calls clear, and that each of its verdicts can fall."""

import json
import random
from dataclasses import replace

import pytest
from shipped import WORKFLOWS
from soak import prompts
from soak import record as soak

GIB = 2**30


@pytest.fixture(scope="module")
def draws(object_info, to_api):
    """Workflow → its random prompts."""
    return {path.stem: prompts.Draws(to_api(path), object_info) for path in WORKFLOWS}


def differing(one: dict, other: dict) -> list[str]:
    """The inputs, as node.input, in which two prompts of the same nodes differ."""
    assert one.keys() == other.keys()
    missing = object()
    return [
        f"{one[key]['class_type']}.{name}"
        for key in one
        for name in one[key]["inputs"] | other[key]["inputs"]
        if repr(one[key]["inputs"].get(name, missing)) != repr(other[key]["inputs"].get(name, missing))
    ]


def test_a_valid_prompt_is_small_random_and_within_the_ranges_of_its_nodes(draws):
    for name, of_workflow in draws.items():
        rng = random.Random(name)
        drawn = [of_workflow.valid(rng) for _ in range(20)]
        assert len({json.dumps(prompt) for prompt in drawn}) == 20
        for node in (node for prompt in drawn for node in prompt.values()):
            for key, (kind, options) in of_workflow._own_inputs(node).items():
                value = node["inputs"][key]
                if kind in ("INT", "FLOAT"):
                    assert options["min"] <= value <= options["max"], f"{name}: {node['class_type']}.{key}"
                    assert kind == "FLOAT" or isinstance(value, int)
                if key in ("steps", "frames", "width", "height", "size"):
                    assert value <= 128
                if kind == "COMBO" and prompts.is_ours(of_workflow.object_info[node["class_type"]]):
                    assert value in options["options"]


def test_an_invalid_prompt_differs_from_a_valid_one_in_the_input_that_it_names(draws):
    for of_workflow in draws.values():
        for seed in range(20):
            valid = of_workflow.valid(random.Random(seed))
            invalid, change = of_workflow.invalid(random.Random(seed))
            (changed,) = differing(valid, invalid) or [""]
            assert changed in ("", change.partition(":")[0])
            assert changed or "output 0 of" in change, "a link may lead where it led"


def failed(type_: str, message: str, folder: str = "/x/custom_nodes/ComfyUI-Coherence/nodes/") -> soak.Run:
    """A run of which ComfyUI's history says this."""
    error = {"exception_type": type_, "exception_message": message, "node_type": "KSampler"}
    error["traceback"] = [f'  File "{folder}momentum.py", line 1\n']
    entry = {"status": {"messages": [["execution_start", {}], ["execution_error", error]]}}
    return soak.finished("zs2", "valid", "", entry, 1.0, 0.0)


@pytest.mark.parametrize(
    ("type_", "message", "is_clear"),
    [
        ("ValueError", "mu is 3.0, expected 0 to 1", True),
        ("RuntimeError", "The size of tensor a (3) must match the size of tensor b (4)", False),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
        ("KeyError", "'sigmas'", False),
        ("torch._C.IndexError", "7", False),
    ],
)
def test_an_error_raised_on_purpose_is_clear_and_one_that_happened_is_not(type_, message, is_clear):
    run = failed(type_, message)
    assert run.outcome == "error"
    assert run.is_ours
    assert run.is_clear == is_clear
    assert not failed(type_, message, "/x/comfy/").is_ours


def record() -> soak.Record:
    """A soak in which all held."""
    runs = [soak.Run("zs2", "valid", "success", 1.0)] * 3
    readings = [{"prompts": n, "tensors": GIB, "storages": 9, "resident": 2 * GIB} for n in (0, 20)]
    return soak.Record(runs, readings, [["a", "b"], ["a", "b"]])


def test_a_soak_in_which_all_held_says_so():
    assert all(soak.verdicts(record()).values())
    assert "NO" not in soak.report(record())


@pytest.mark.parametrize(
    ("change", "fallen"),
    [
        ({"fault": "The ComfyUI server died"}, "no crash"),
        ({"readings": [record().readings[0], record().readings[1] | {"tensors": 1.06 * GIB}]}, "tensors grow"),
        ({"readings": [record().readings[0], record().readings[1] | {"resident": 2.2 * GIB}]}, "the process grows"),
        ({"pictures": [["a", "b"], ["a", "c"]]}, "plain pictures"),
        ({"runs": [replace(failed("KeyError", "'x'"), kind="invalid")]}, "every failure"),
    ],
)
def test_each_verdict_can_fall(change, fallen):
    seen = replace(record(), **change)
    assert [what for what, holds in soak.verdicts(seen).items() if not holds and what.startswith(fallen)]
    assert "| NO |" in soak.report(seen)
