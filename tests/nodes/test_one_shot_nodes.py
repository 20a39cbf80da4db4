"""Tuning, saving, loading and sampling through the real server; what goes wrong is explained and leaves nothing."""

import time

import pytest
import torch
from coherence.client.errors import PromptError
from coherence.client.server import outputs
from coherence.files.weights_file import SUFFIX, load
from prompts_for_tuning import graph, link
from safetensors import safe_open
from safetensors.torch import save_file

pytestmark = pytest.mark.slow


def loading(file):
    return {"class_type": "LoadSTAM", "inputs": {"file": file}}


def sampled(prompt):
    """The same with a run of the inflated model in the place of tuning."""
    for name in ("tune", "save"):
        del prompt[name]
    run = {
        "model": link("inflate"),
        "positive": link("text"),
        "negative": link("text"),
        "latent_image": link("clip"),
        "seed": 0,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    prompt["run"] = {"class_type": "KSampler", "inputs": run}
    save = {"samples": link("run"), "filename_prefix": "sampled"}
    prompt["out"] = {"class_type": "SaveLatent", "inputs": save}
    return prompt


def saved(entry):
    (file,) = (each for each in outputs(entry) if each["filename"].endswith(SUFFIX))
    return f"{file['subfolder']}/{file['filename']}"


def folder(server):
    return server.base / "output"


@pytest.fixture(scope="module")
def file(server):
    """Weights that the server has tuned and saved."""
    return saved(server.queue(graph()))


def test_what_was_tuned_is_saved_with_what_it_is_of_and_goes_on_from_the_file(server, file):
    weights = load(folder(server) / file)
    assert (weights.base, weights.steps, weights.frames, weights.places) == ("DemoConfig", 2, 2, {"middle.0"})
    with safe_open(folder(server) / file, "pt") as opened:
        assert opened.metadata()["pack_version"]
    prompt = graph(weights={"weights": link("load")}, learning_rate=1e-7)
    prompt["load"] = loading(file)
    on = load(folder(server) / saved(server.queue(prompt)))
    assert on.steps == 4
    for name, tensor in weights.tensors.items():
        assert torch.allclose(on.tensors[name], tensor, atol=1e-4)


def test_loaded_weights_change_what_is_sampled(server, file):
    def latent(prompt):
        (path,) = (each for each in outputs(server.queue(prompt)) if each["filename"].endswith(".latent"))
        return load_latent(folder(server) / path["subfolder"] / path["filename"])

    tuned = sampled(graph(weights={"weights": link("load")}))
    tuned["load"] = loading(file)
    assert not torch.equal(latent(tuned), latent(sampled(graph())))


def load_latent(path):
    with safe_open(path, "pt") as opened:
        return opened.get_tensor("latent_tensor")


def test_a_cancel_keeps_nothing_half_written_and_the_next_prompt_works(server):
    before = sorted(folder(server).rglob("*"))
    sent = server.post("/prompt", {"prompt": graph(steps=10_000, seed=9)})
    deadline = time.monotonic() + 120
    while not server.get("/queue")["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)  # well within training
    server.post("/interrupt", {})
    while sent["prompt_id"] not in server.get(f"/history/{sent['prompt_id']}") and time.monotonic() < deadline:
        time.sleep(0.1)
    entry = server.get(f"/history/{sent['prompt_id']}")[sent["prompt_id"]]
    assert "execution_interrupted" in str(entry["status"])
    assert sorted(folder(server).rglob("*")) == before
    assert saved(server.queue(graph(seed=10)))


def broken_files(server, file):
    good = load(folder(server) / file)
    with safe_open(folder(server) / file, "pt") as opened:
        metadata = opened.metadata()
    first = next(iter(good.tensors))
    tensors = dict(good.tensors)
    return {
        "truncated": lambda path: path.write_bytes((folder(server) / file).read_bytes()[:-100]),
        "foreign": lambda path: save_file({"weight": torch.zeros(2)}, path),
        "nan": lambda path: save_file({**tensors, first: tensors[first] * float("nan")}, path, metadata),
        "shape": lambda path: save_file({**tensors, first: torch.zeros(3, 3)}, path, metadata),
        "form": lambda path: save_file(tensors, path, metadata | {"form": "{}"}),
        "steps": lambda path: save_file(tensors, path, metadata | {"steps": "-1"}),
    }


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("truncated", "cannot be loaded.*Choose a file that SaveSTAM wrote"),
        ("foreign", "expected the format 'coherence inflation weights'"),
        ("nan", "expected finite numbers, got NaN"),
        ("shape", r"\(3, 3\), this model \(DemoConfig\) expects"),
        ("form", "form: 'module' is missing"),
        ("steps", "steps: expected a whole number, got '-1'"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(server, file, kind, complaint):
    path = folder(server) / "stam" / f"{kind}{SUFFIX}"
    broken_files(server, file)[kind](path)
    prompt = sampled(graph(weights={"weights": link("load")}))
    prompt["load"] = loading(f"stam/{path.name}")
    try:
        with pytest.raises(PromptError, match=rf"(?s){complaint}"):
            server.queue(prompt)
    finally:
        path.unlink()


def test_a_file_outside_the_output_folder_is_refused_before_anything_runs(server):
    (server.base / f"secret{SUFFIX}").write_bytes(b"")
    prompt = sampled(graph(weights={"weights": link("load")}))
    prompt["load"] = loading(f"../secret{SUFFIX}")
    with pytest.raises(PromptError, match="expected saved weights in the output folder"):
        server.queue(prompt)
    outside = graph()
    outside["save"]["inputs"]["filename_prefix"] = "../../x"
    with pytest.raises(PromptError, match="outside the output folder"):
        server.queue(outside)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": link("demo")}, "expected an inflated model, got a plain one"),
        ({"batch_frames": 1}, "batch_frames: expected 0"),
    ],
)
def test_a_mistake_is_explained_at_its_node(server, change, complaint):
    prompt = graph(**change)
    with pytest.raises(PromptError, match=rf"(?s)\(OneShotTune\).*{complaint}"):
        server.queue(prompt)
