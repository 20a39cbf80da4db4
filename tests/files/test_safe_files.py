"""What the loaders read is bounded before it is read, what the savers write is there whole or not at all."""

import json
import os
import pickle
import re
import resource
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import folder_paths
import pytest
import torch
from coherence.files import momentum_file
from coherence.nodes.entropy_register import REGISTRIES, LoadAttentionRegistry, SaveAttentionRegistry
from coherence.nodes.ge_adapter import LoadGEAdapter, SaveGEAdapter
from coherence.nodes.momentum_of_run import LoadMomentum, SaveMomentum
from coherence.nodes.one_shot import LoadSTAM, SaveSTAM
from safetensors.torch import load_file
from saved_examples import GOOD, LOADERS

SAVERS = {
    "LoadSTAM": SaveSTAM,
    "LoadGEAdapter": SaveGEAdapter,
    "LoadMomentum": SaveMomentum,
    "LoadAttentionRegistry": SaveAttentionRegistry,
}
NODES = {
    "LoadSTAM": LoadSTAM,
    "LoadGEAdapter": LoadGEAdapter,
    "LoadMomentum": LoadMomentum,
    "LoadAttentionRegistry": LoadAttentionRegistry,
}
SAFETENSORS = ["LoadSTAM", "LoadGEAdapter", "LoadMomentum"]
every_loader = pytest.mark.parametrize("name", LOADERS)
every_tensor_loader = pytest.mark.parametrize("name", SAFETENSORS)


def save(name, prefix="loras/a"):
    (told,) = next(iter(SAVERS[name].execute(LOADERS[name].example, prefix).ui.values()))
    return Path(folder_paths.get_output_directory(), told["subfolder"], told["filename"])


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Saving -------------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(size):
    """No file can grow beyond ``size`` bytes: what a disk without room says, without the rights to mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@every_loader
@pytest.mark.parametrize("size", [0, 100, 400])
def test_without_room_the_error_says_what_to_do_and_earlier_files_stay(name, size, output):
    save(name)
    before = files(output)
    with (
        full_disk(size),
        pytest.raises(OSError, match=rf"{SAVERS[name].__name__} could not .*loras/a.*Free disk space"),
    ):
        save(name)
    assert files(output) == before
    assert save(name).name.startswith("a_00002_")


@every_loader
@pytest.mark.parametrize("place", ["a file in the way", "no right to write"])
def test_a_folder_that_takes_no_file_is_named(name, place, output, monkeypatch):
    if place == "no right to write":
        monkeypatch.setattr(folder_paths, "output_directory", "/sys")  # the kernel's: not even root writes there
    else:
        (output / "loras").write_bytes(b"not a folder")
    with pytest.raises(OSError, match=rf"{SAVERS[name].__name__} could not write .*loras/a: .*Free disk space"):
        save(name)
    assert set(files(output)) <= {output / "loras"}


@every_loader
def test_what_a_killed_server_has_left_is_never_offered_and_goes_with_a_later_save(name, output):
    path = save(name)
    now = time.time()
    ages = {
        f"{path.name}.coherence-{'0' * 32}.part": 7200,
        f"{path.name}.coherence-{'1' * 32}.part": 60,  # maybe still written by another server
        f"{path.name}.part": 7200,  # not ours
    }
    for each, age in ages.items():
        (path.parent / each).write_bytes(GOOD[name][:50])
        os.utime(path.parent / each, (now - age, now - age))
    assert not any("part" in each for each in NODES[name].define_schema().inputs[0].options)
    assert folder_paths.get_filename_list("loras") == ([] if name == "LoadAttentionRegistry" else [path.name])
    save(name)
    assert [each for each in ages if (path.parent / each).exists()] == list(ages)[1:]


@every_loader
def test_who_may_read_a_saved_file_is_the_systems_choice(name, output):
    umask = os.umask(0o022)
    try:
        assert save(name).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)


@every_tensor_loader
def test_safetensors_reads_what_is_saved_and_a_second_save_gives_the_same_bytes(name, output):
    path = save(name)
    read = load_file(path)
    example = LOADERS[name].example
    for each, tensor in (example.lora if name == "LoadGEAdapter" else example.tensors).items():
        assert torch.equal(read[each], tensor)
        assert read[each].dtype == tensor.dtype
    assert save(name).read_bytes() == path.read_bytes()


@every_loader
@pytest.mark.parametrize(
    "prefix",
    [
        "../a",
        "x/../../a",
        "/etc/a",
        "C:\\a",
        "..\\a",
        "x\\..\\..\\a",
        "\\\\host\\a",
        "a\0b",
        "a\nb",
        "%2e%2e%2fa",
        "..%5Ca",
        "link/a",
        "loop/a",
    ],
)
def test_a_prefix_that_leads_outside_is_refused_before_and_while_it_runs(name, prefix, output):
    outside = output.parent / "outside"
    outside.mkdir()
    (output / "link").symlink_to(outside)
    (output / "loop").symlink_to(output / "loop")
    if prefix == "loop/a":
        with pytest.raises(OSError, match="could not write"):
            save(name, prefix)
    else:
        assert "outside the output folder" in SAVERS[name].validate_inputs(prefix)
        with pytest.raises(ValueError, match="outside the output folder"):
            save(name, prefix)
    assert not files(output.parent)


@every_loader
def test_ordinary_prefixes_are_taken(name, output):
    for prefix in ("a", "x/y/a..b", "%year%/50% of a", "ab:c", "…/größer", "x\\a"):
        assert SAVERS[name].validate_inputs(prefix) is True
        assert save(name, prefix).is_file()
    assert SAVERS[name].validate_inputs(None) is True


@every_loader
@pytest.mark.parametrize("prefix", ["", ".", "loras/", "loras/a/", "loras/a/."])
def test_a_prefix_without_a_name_is_refused(name, prefix, output):
    """ComfyUI would number every file of it 1, and write the first of these into the folder above."""
    assert "which has no name" in SAVERS[name].validate_inputs(prefix)
    with pytest.raises(ValueError, match="which has no name"):
        save(name, prefix)
    assert not files(output)


@every_loader
def test_no_file_is_written_over_whatever_number_comfyui_counts(name, output, monkeypatch):
    there = [save(name) for _ in range(3)]
    known = [path.stat().st_ino for path in there]
    usual = folder_paths.get_save_image_path
    monkeypatch.setattr(folder_paths, "get_save_image_path", lambda *args: (*usual(*args)[:2], 1, *usual(*args)[3:]))
    assert save(name).name.startswith("a_00004_")
    assert [path.stat().st_ino for path in there] == known


# Loading ------------------------------------------------------------------------------------------------------------


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header_with(name, **entry):
    """The header of a good file with another tensor."""
    good = GOOD[name]
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    return {"__metadata__": header["__metadata__"], "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}


def with_heads(text):
    """The good registry with ``text`` for a layer's number of heads."""
    changed, count = re.subn(r'"heads": \d+', lambda _: text, GOOD["LoadAttentionRegistry"].decode(), count=1)
    assert count
    return changed


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@every_tensor_loader
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"shape": [2**60]}, rf"shape\[0\]: expected less than {2**31}, got {2**60}"),
        ({"shape": [0, 2**63], "data_offsets": [0, 0]}, rf"shape\[1\]: expected less than {2**31}"),
        ({"shape": [1] * 1000}, "shape: expected at most 8 of them"),
        ({"shape": [True]}, r"shape\[0\]: expected a whole number, got True"),
        ({"data_offsets": [0, 2**62]}, r"data_offsets\[1\]: expected less than"),
        ({"data_offsets": ["x" * 5000, 4]}, r"data_offsets\[0\]: expected a whole number, got 'xxx"),
        ({"dtype": "I64"}, "dtype: expected one of 'F32', 'F16' or 'BF16', got 'I64'"),
        ({"dtype": ["F32"]}, "dtype: expected one of 'F32'"),
        ({"more": 1}, "more: expected no such name"),
    ],
)
def test_a_tensor_that_claims_what_is_not_there_is_refused(name, entry, reason):
    with pytest.raises(LOADERS[name].error, match=f"cannot be loaded: x: {reason}"):
        LOADERS[name].read(safetensors(header_with(name, **entry), b"\0" * 4))


@every_tensor_loader
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (safetensors(b"{}", length=2**63), "expected a header of at most"),
        (safetensors(b'{"a":' * 3000), "header: not valid JSON"),
        (safetensors(b'{"a":1,"a":1}'), "a name occurs twice"),
        (safetensors(b'{"__metadata__":{"format":1}}'), "metadata: format: expected a text, got 1"),
        (safetensors(b"[]"), "header: expected an object"),
        (safetensors({"\ud800": 1}), "header: not valid JSON"),
        (safetensors({"a\n": 1}), "printable"),
        (pickle.dumps({"state_dict": 1}), "not a complete safetensors file"),
    ],
)
def test_a_header_that_is_none_is_refused(name, content, reason):
    with pytest.raises(LOADERS[name].error, match=f"cannot be loaded: .*{reason}"):
        LOADERS[name].read(content)


@every_loader
def test_a_big_file_costs_neither_time_nor_memory(name, output):
    """5 MB of names, more than any model has, 20 MB for a run; and a file of 1 TB, of which nothing is on the disk."""
    path = save(name)
    entries = b",".join(
        b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i
        for i in range(400_000 if name == "LoadMomentum" else 100_000)
    )
    text = b"{" + entries + b"}"
    path.write_bytes(text if name == "LoadAttentionRegistry" else safetensors(text))
    sparse = path.with_name(f"sparse{path.name}")
    with sparse.open("wb") as file:
        file.write(GOOD[name])
        file.truncate(2**40)
    started = time.monotonic()
    tracemalloc.start()
    try:
        for each in (path, sparse):
            with pytest.raises(LOADERS[name].error, match=r"expected .*at most"):
                LOADERS[name].module.load(each)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_the_fingerprint_of_a_big_file_needs_no_reading(output, monkeypatch):
    path = save("LoadAttentionRegistry")
    before = LoadAttentionRegistry.fingerprint_inputs(f"loras/{path.name}")
    os.truncate(path, 2**36)
    monkeypatch.setattr(Path, "open", None)
    assert LoadAttentionRegistry.fingerprint_inputs(f"loras/{path.name}") != before


@pytest.mark.parametrize("change", ['"heads": 1, "heads": 1', '"heads": NaN', '"heads": 1e999', f'"heads": {10**30}'])
def test_a_registry_is_no_json_of_its_own_kind(change):
    text = with_heads(change)
    with pytest.raises(
        LOADERS["LoadAttentionRegistry"].error, match=r"not valid JSON|heads: expected at most 18446744073709551615"
    ):
        LOADERS["LoadAttentionRegistry"].read(text.encode())


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_json_nested_just_within_pythons_limit_is_refused_like_any_other(depth):
    nested = "[" * depth + "]" * depth
    text = with_heads(f'"heads": {nested}')
    with pytest.raises(LOADERS["LoadAttentionRegistry"].error):
        LOADERS["LoadAttentionRegistry"].read(text.encode())
    for name, key in (("LoadSTAM", "form"), ("LoadGEAdapter", "training")):
        header = header_with(name)
        inner = json.dumps(dict.fromkeys(json.loads(header["__metadata__"][key]), 0)).replace("0", nested, 1)
        header["__metadata__"][key] = inner
        with pytest.raises(LOADERS[name].error):
            LOADERS[name].read(safetensors(header, b"\0" * 4))


@every_loader
def test_loaded_tensors_outlive_their_file(name, output):
    """A file that is mapped and then cut short ends the process that touches it."""
    path = save(name)
    read = LOADERS[name].module.load(path)
    os.truncate(path, 0)
    assert LOADERS[name].written(read) == GOOD[name]


@every_tensor_loader
def test_a_pickle_under_our_name_is_refused_and_never_run(name, output):
    import nodes

    path = save(name)
    path.write_bytes(pickle.dumps(Touch(output / "run")))
    with pytest.raises(LOADERS[name].error, match="not a complete safetensors file"):
        NODES[name].execute(f"loras/{path.name}")
    with pytest.raises(Exception, match=r"(?i)header"):
        nodes.LoraLoader().load_lora(None, None, path.name, 1.0, 0.0)
    torch.save(Touch(output / "run"), path)
    with pytest.raises(LOADERS[name].error, match="not a complete safetensors file"):
        NODES[name].execute(f"loras/{path.name}")
    assert not (output / "run").exists()


@every_tensor_loader
@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_the_stock_loader_refuses_a_part_of_our_file_too(name, length, output):
    import nodes

    path = save(name)
    path.write_bytes(GOOD[name][:length])
    with pytest.raises(LOADERS[name].error):
        NODES[name].execute(f"loras/{path.name}")
    with pytest.raises(Exception, match=r"(?i)header|buffer|file"):
        nodes.LoraLoader().load_lora(None, None, path.name, 1.0, 0.0)


def test_links_that_lead_nowhere_hide_no_other_file(output):
    path = save("LoadAttentionRegistry")
    for i, target in enumerate(["x" * 300, "/nowhere/at/all", f"{output}/loras/link2{path.name}"]):
        (output / "loras" / f"link{i}{path.name}").symlink_to(target)
    assert REGISTRIES.names() == [f"loras/{path.name}"]


def test_the_momentum_of_a_long_run_has_room_for_its_many_tensors(tmp_path):
    tensors = {f"level {n}/a layer with a name as long as they are/key": torch.zeros(0) for n in range(40_000)}
    momentum_file.FORMAT.write(tensors, {}, tmp_path / "long.safetensors")
    assert len(momentum_file.FORMAT.read(tmp_path / "long.safetensors")[1]) == 40_000
