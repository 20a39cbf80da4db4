"""GE-Adapters as files: nothing is lost, nothing malformed gets in, nothing outside the loras folders is read."""

import json
import os

import pytest
import torch
from adapter_runs import weights
from coherence.demo.model import load_model
from coherence.files.ge_adapter_file import SUFFIX, GEAdapterFileError, load, save
from coherence.nodes.ge_adapter import GEAdapterApply, LoadGEAdapter, SaveGEAdapter
from coherence.training.ge_adapter import GEAdapter, Training, untrained
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import sample
from watching import DEMO, difference

OPTIONS = {"learning_rate": 3e-5, "seed": 2**63, "caption": "ein Kreis, größer", "resumed": True}


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def adapter(unet):
    """As training leaves it: B is not 0."""
    start = untrained(unet.model, "all", 4, 8, 128, 48, 16, seed=1)
    generator = torch.Generator().manual_seed(0)
    lora = {
        name: torch.randn(x.shape, generator=generator) if name.endswith("lora_up.weight") else x
        for name, x in start.lora.items()
    }
    return GEAdapter(lora, start.shared_tokens, start.projection, Training("BaseModel", "all", 16, 500, OPTIONS))


@pytest.mark.parametrize("with_projection", [True, False])
def test_a_file_gives_what_was_saved_and_leaves_nothing_else(adapter, tmp_path, with_projection):
    written = GEAdapter(
        adapter.lora,
        adapter.shared_tokens.half(),
        adapter.projection if with_projection else None,
        adapter.training,
    )
    path = tmp_path / f"one{SUFFIX}"
    save(written, path)
    read = load(path)
    assert weights(read).keys() == weights(written).keys()
    for name, tensor in weights(written).items():
        assert torch.equal(weights(read)[name], tensor)
        assert weights(read)[name].dtype == tensor.dtype
    assert read.training == written.training
    assert os.listdir(tmp_path) == [path.name]
    with safe_open(path, "pt") as file:
        assert file.metadata()["pack_version"].count(".") == 2


def test_a_save_that_fails_leaves_the_old_file(adapter, tmp_path):
    path = tmp_path / f"one{SUFFIX}"
    save(adapter, path)
    before = path.read_bytes()
    nowhere = Training("BaseModel", "all", 16, 500, {"learning_rate": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        save(GEAdapter(adapter.lora, adapter.shared_tokens, None, nowhere), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_the_stock_loader_takes_the_file_as_a_lora(unet, adapter, output):
    import nodes

    SaveGEAdapter.execute(adapter, "loras/clips/circle")
    file = f"clips/circle_00001_{SUFFIX}"
    assert nodes.LoraLoader.INPUT_TYPES()["required"]["lora_name"][0] == [file]
    merged, _ = nodes.LoraLoader().load_lora(unet, None, file, 0.5, 0.0)
    ours = GEAdapterApply.execute(unet, LoadGEAdapter.execute(f"loras/{file}")[0], 0.5, 0.0, 1.0)[0]
    assert len(merged.patches) == len(adapter.lora) // 3
    pictures = [sample(model, DEMO, steps=1) for model in (unet, merged, ours)]
    assert difference(pictures[1], pictures[0]) > 0.05
    assert difference(pictures[2], pictures[1]) < 1e-4


# Broken files -------------------------------------------------------------------------------------------------------


def altered(adapter, path, tensors=None, metadata=None, without=()):
    """The file of ``adapter`` with other tensors or metadata."""
    save(adapter, path)
    with safe_open(path, "pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        known = file.metadata()
    content = {name: x for name, x in {**content, **(tensors or {})}.items() if name not in without}
    save_file(content, path, {**known, **(metadata or {})})
    return path


def training(**changes):
    content = {"base": "BaseModel", "layers": "all", "frames": 16, "steps": 1, "options": {}} | changes
    return {"training": json.dumps({name: value for name, value in content.items() if value != "left out"})}


SHARED, WEIGHT = "ge_adapter.shared_tokens", "ge_adapter.projection.weight"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metadata": {"format": "pt"}}, "expected the format 'coherence ge-adapter', version 1, got 'pt'"),
        ({"metadata": {"version": "2"}}, "got 'coherence ge-adapter', version '2'"),
        ({"metadata": {"training": "["}}, "training: not valid JSON"),
        ({"metadata": {"training": "[" * 100_000}}, "training: not valid JSON"),
        ({"metadata": training(steps="left out")}, "training: 'steps' is missing"),
        (
            {"metadata": training(layers="middle")},
            "training: layers: expected one of 'down', 'all' or 'up', got 'middle'",
        ),
        ({"metadata": training(frames=True)}, "training: frames: expected a whole number, got True"),
        ({"metadata": training(steps=-1)}, "training: steps: expected at least 0, got -1"),
        (
            {"metadata": training(options={"a": [1]})},
            "training: options: a: expected .* or a text or true or false, got",
        ),
        ({"tensors": {SHARED: torch.full((8, 128), torch.nan)}}, "shared_tokens: expected finite numbers"),
        ({"tensors": {SHARED: torch.zeros(8, 128, dtype=torch.int32)}}, "dtype: expected one of .*got 'I32'"),
        ({"tensors": {SHARED: torch.zeros(8, 64)}}, r"projection: expected a weight \(64, vision width\)"),
        ({"without": [SHARED]}, "expected ge_adapter.shared_tokens"),
        ({"without": [WEIGHT]}, "both or none"),
        ({"tensors": {"lora_te_text.alpha": torch.tensor(1.0)}}, "unknown tensors: lora_te_text.alpha"),
        ({"tensors": {"lora_unet_x.alpha": torch.tensor(1.0)}}, "missing or unknown: lora_unet_x.lora_down.weight"),
    ],
)
def test_the_reason_says_where_and_what(adapter, tmp_path, changes, reason):
    path = altered(adapter, tmp_path / f"broken{SUFFIX}", **changes)
    with pytest.raises(GEAdapterFileError, match=rf"broken{SUFFIX} cannot be loaded: .*{reason}.*SaveGEAdapter"):
        load(path)


def test_files_that_are_no_safetensors_are_refused(adapter, tmp_path, tiny_models):
    path = tmp_path / f"broken{SUFFIX}"
    save(adapter, path)
    whole = path.read_bytes()
    for content in (b"", b"\xff" * 100, whole[: len(whole) // 2], whole[:50]):
        path.write_bytes(content)
        with pytest.raises(GEAdapterFileError, match=rf"broken{SUFFIX} cannot be loaded"):
            load(path)
    with pytest.raises(GEAdapterFileError, match="for an ordinary LoRA use LoraLoader"):
        load(tiny_models.lora_path())


# The nodes ----------------------------------------------------------------------------------------------------------


def test_saved_adapters_are_numbered_listed_and_loaded(adapter, output):
    saved = [SaveGEAdapter.execute(adapter, "loras/demo").ui["adapters"][0] for _ in range(2)]
    assert [entry["filename"] for entry in saved] == [f"demo_0000{i}_{SUFFIX}" for i in (1, 2)]
    save_file({"lora_unet_x.alpha": torch.tensor(1.0)}, output / "loras" / "plain.safetensors")
    (listed,) = LoadGEAdapter.define_schema().inputs
    assert listed.options[:-1] == [f"loras/{entry['filename']}" for entry in saved]
    assert LoadGEAdapter.execute(listed.options[-1])[0].training.base == "BaseModel"  # the example
    assert LoadGEAdapter.validate_inputs(listed.options[1]) is True
    read = LoadGEAdapter.execute(listed.options[1])[0]
    assert torch.equal(read.shared_tokens, adapter.shared_tokens)
    assert read.training.options == OPTIONS


def test_a_file_that_changes_is_loaded_again(adapter, output):
    SaveGEAdapter.execute(adapter, "demo")
    file = f"demo_00001_{SUFFIX}"
    before = LoadGEAdapter.fingerprint_inputs(file)
    assert LoadGEAdapter.fingerprint_inputs(file) == before
    save(GEAdapter(adapter.lora, adapter.shared_tokens, None, adapter.training), output / file)
    assert LoadGEAdapter.fingerprint_inputs(file) != before


def test_nothing_is_saved_or_loaded_outside_the_output_folder(adapter, output):
    with pytest.raises(Exception, match="outside the output folder"):
        SaveGEAdapter.execute(adapter, "../demo")
    outside = output.parent / f"secret{SUFFIX}"
    save(adapter, outside)
    (output / f"link{SUFFIX}").symlink_to(outside)
    for file in (f"../secret{SUFFIX}", str(outside), f"link{SUFFIX}", "missing" + SUFFIX, "\0", ""):
        with pytest.raises(FileNotFoundError, match="expected a saved adapter in the output folder"):
            LoadGEAdapter.execute(file)
        assert "expected a saved adapter" in LoadGEAdapter.validate_inputs(file)
