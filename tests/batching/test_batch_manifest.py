"""The manifest holds what was written, whenever the power goes."""

import pytest
from coherence.batching.manifest import Manifest, open_manifest
from coherence.batching.recorder import safe_name
from coherence.client.errors import ComfyError
from hypothesis import given
from hypothesis import strategies as st


@given(count=st.integers(1, 6), data=st.data())
def test_a_manifest_cut_anywhere_keeps_every_whole_line_and_can_be_added_to(count, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    manifest = Manifest(path)
    for number in range(count):
        manifest.add("finished", key=str(number), status="failed", error="zwölf\n" * number)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    again = Manifest(path)
    assert list(again.finished) == [str(number) for number in range(kept)]
    again.add("finished", key="new", status="failed", error="")
    assert list(Manifest(path).finished) == [*(str(number) for number in range(kept)), "new"]


def test_a_damaged_line_is_named_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"event": "finished", "key": "a"}\nrubbish\n')
    with pytest.raises(ComfyError, match=r"Line 2 of .*manifest\.jsonl was not written by batch"):
        Manifest(path)
    assert path.read_text().endswith("rubbish\n")


def test_a_run_whose_files_were_removed_or_cut_is_not_finished(tmp_path):
    with open_manifest(tmp_path) as manifest:
        (tmp_path / "a.png").write_bytes(b"12345")
        manifest.add("finished", key="a", status="done", files=[{"path": "a.png", "bytes": 5}])
        assert manifest.is_finished("a")
        (tmp_path / "a.png").write_bytes(b"123")
        assert not manifest.is_finished("a")
        (tmp_path / "a.png").unlink()
        assert not manifest.is_finished("a")


def test_what_was_stopped_on_purpose_is_not_waited_for(tmp_path):
    manifest = Manifest(tmp_path / "manifest.jsonl")
    manifest.add("begun", key="a", server="here", prompt_id="1")
    manifest.add("begun", key="b", server="here", prompt_id="2")
    manifest.add("stopped", key="a")
    assert Manifest(manifest.path).begun.keys() == {"b"}


def test_two_batches_do_not_write_to_one_folder(tmp_path):
    refused = pytest.raises(ComfyError, match=r"Another batch\.py writes to")
    with open_manifest(tmp_path), refused, open_manifest(tmp_path):
        pass


@given(st.text("a./\\:*?\x00 é", max_size=12))
def test_a_servers_file_name_never_leaves_its_folder(name):
    safe = safe_name(name)
    assert safe
    assert not set(safe) & set("/\\:*?\x00")
    assert safe not in (".", "..")
