"""Batches on a real server: everything is collected, mistakes are told before anything runs, nothing runs twice."""

import json
import shutil
from pathlib import Path

import av
import pytest
from batch_prompts import every_output, lines, slow, start, write
from coherence.batching import workers
from coherence.batching.cli import main
from coherence.hosting.provision import PACK
from PIL import Image

pytestmark = pytest.mark.slow

GRID = {"grid": {"clip.motion": ["slide", "grow"], "clip.seed": [1, 2]}}


def history(server) -> set[str]:
    return set(server.get("/history"))


@pytest.fixture(scope="module")
def collected(server, tmp_path_factory):
    """A batch with every kind of output: its folder and records."""
    folder = tmp_path_factory.mktemp("collected")
    shutil.copy(PACK / "workflows" / "assets" / "red_circle.mp4", server.base / "input")
    arguments = write(folder, every_output("red_circle.mp4"), GRID)
    assert main([*arguments, "--server", server.url, f"{server.url}/"]) == 0  # which is one server
    return folder, arguments


def test_every_kind_of_output_is_collected_whole(collected):
    folder, _ = collected
    records = lines(folder)
    assert [record["run"] for record in records] == [1, 2, 3, 4]
    for record in records:
        paths = {file["title"]: [] for file in record["files"]}
        for file in record["files"]:
            path = folder / "out" / file["path"]
            assert path.stat().st_size == file["bytes"] > 0
            paths[file["title"]].append(path)
        assert {title: len(found) for title, found in paths.items()} == {
            "SaveImage": 4,
            "PreviewImage": 4,
            "SaveAnimatedWEBP": 1,
            "SaveVideo": 1,
        }
        assert Image.open(paths["SaveAnimatedWEBP"][0]).n_frames == 4
        with av.open(str(paths["SaveVideo"][0])) as video:
            assert sum(1 for _ in video.decode(video=0)) > 4
        assert json.loads(record["texts"]["How steady"])["frames"] == 4
        assert json.loads((paths["SaveImage"][0].parent / "prompt.json").read_text())["clip"]["inputs"]["frames"] == 4


def test_the_manifest_says_what_made_a_run_and_how_it_went(collected, server):
    record = lines(collected[0])[3]
    assert record["values"] == {"clip.motion": "grow", "clip.seed": 2}
    assert record["seeds"] == {"CoherenceDemoClip (clip).seed": 2}
    assert (record["status"], record["server"], record["attempts"]) == ("done", server.url, 1)
    assert 0 < record["seconds"] <= record["waited"] + 0.1
    assert record["figures"]["seconds"] == record["seconds"]
    report = json.loads(record["texts"]["How steady"])
    assert record["figures"]["How steady: clip ssim"] == report["clip"]["mean"]["ssim"]
    # The node measures the drawn frames, the batch the saved ones, which have 8 bits.
    assert record["figures"]["SSIM of neighbouring frames"] == pytest.approx(report["clip"]["mean"]["ssim"], abs=2e-3)


def test_contact_sheet_and_comparison_show_the_runs(collected):
    out = collected[0] / "out"
    with Image.open(out / "contact_sheet.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
        red = sum(count for count, (r, g, b) in colours if r > 180 and g < 90 and b < 90)
        assert red > 4 * 4 * 100, "four frames of four runs hold a red circle each"
    with Image.open(out / "comparison.png") as plot:
        assert min(plot.size) > 250
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 50


def test_the_same_command_again_queues_nothing(collected, server):
    folder, arguments = collected
    before = history(server)
    assert main([*arguments, "--server", server.url]) == 0
    assert history(server) == before
    assert len(lines(folder)) == 4


def test_a_run_whose_files_were_lost_is_made_again_and_no_other(collected, server):
    folder, arguments = collected
    (folder / "out" / lines(folder)[1]["files"][0]["path"]).unlink()
    assert main([*arguments, "--server", server.url]) == 0
    assert [record["run"] for record in lines(folder)] == [1, 2, 3, 4, 2]


def test_what_the_server_lost_is_made_again(server, tmp_path, monkeypatch):
    """The server remembers a run and the names of its files, and its output folder was emptied."""
    command = [*write(tmp_path, slow(64, 1), {"list": {"Colour.color": [0x13579B]}}), "--server", server.url]
    assert main(command) == 0
    (first,) = lines(tmp_path)
    for path in (server.base / "output").glob("slow*"):
        path.unlink()
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(workers, "_REMAKES", 0)
        assert main(command) == 1
        assert "does not give slow_" in lines(tmp_path)[0]["error"]
    assert main([*command, "--retry-failed"]) == 0
    _, second = lines(tmp_path)
    assert second["prompt_id"] != first["prompt_id"]
    with Image.open(tmp_path / "out" / second["files"][0]["path"]) as picture:
        assert picture.getpixel((16, 16)) == (0x13, 0x57, 0x9B)


def test_a_terminal_of_another_encoding_is_told_every_run_and_every_failure(server, tmp_path):
    prompt = slow(64, 1)
    prompt["2"] = {"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "upscale_method": "bicubic"}}
    prompt["1"]["inputs"] |= {"width": 16, "height": 16}
    table = {"grid": {"5.filename_prefix": ["红色的圆", "$$$ money $$$"], "2.scale_by": [0.01]}}
    command = [*write(tmp_path, prompt, table), "--server", server.url]
    for more, code, told in (["--dry-run"], 0, "to be run"), ([], 1, "failed: 1"):
        batch = start(*command, *more, PYTHONIOENCODING="cp1252")
        output, _ = batch.communicate(timeout=120)
        assert batch.returncode == code, output
        assert told in output
        assert r"\u7ea2\u8272" in output


def test_a_nodes_error_is_recorded_once_and_the_others_go_on(server, tmp_path, capsys):
    prompt = slow(64, 1)
    prompt["2"] = {"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "upscale_method": "bicubic"}}
    arguments = write(tmp_path, prompt, {"grid": {"2.scale_by": [0.01, 1.0], "Colour.width": [16, 32]}})
    command = [*arguments, "--server", server.url]
    assert main(command) == 1
    assert [record["status"] for record in lines(tmp_path)] == ["failed", "failed", "done", "done"]
    assert "node 2 (ImageScaleBy): RuntimeError" in lines(tmp_path)[0]["error"]
    assert "failed: 1 (scale_by = 0.01, width = 16): node 2" in capsys.readouterr().out
    assert main(command) == 1
    assert len(lines(tmp_path)) == 4
    assert main([*command, "--retry-failed"]) == 1
    assert [record["run"] for record in lines(tmp_path)] == [1, 2, 3, 4, 1, 2]


def test_a_saved_workflow_runs_over_a_yaml_grid_with_the_demo_model(server, tmp_path):
    table = tmp_path / "few.yaml"
    table.write_text(
        "set: {BasicScheduler.steps: 2, 5.batch_size: 3, '14.scale_by': 1}\n"
        "grid:\n  DependencyNoise.kl: [0.01, 1.65]\n  TemporalMomentumAttention.mu: [0.98]\n"
    )
    workflow = PACK / "workflows" / "zs2_text_to_video.json"
    assert main([str(workflow), str(table), "--server", server.url, "--out", str(tmp_path / "out")]) == 0
    still, free = (record["figures"] for record in lines(tmp_path))
    assert still["SSIM of neighbouring frames"] > free["SSIM of neighbouring frames"]
    assert {Path(file["path"]).suffix for file in lines(tmp_path)[0]["files"]} == {".webp", ".mp4", ".png"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"table": {"grid": {"Color.color": [1]}}}, "no node has that title or id. The workflow has:\n     1  Colour"),
        ({"table": {"grid": {"ImageScale.width": [1]}}}, "2 nodes are called so"),
        ({"table": {"grid": {"Colour.color": ["red"]}}}, "expected a whole number, got 'red'"),
        ({"table": {"grid": {"2.upscale_method": ["cubic"]}}}, "not one of its choices: bicubic"),
        ({"table": []}, "is empty"),
        ({"prompt": []}, "This JSON is not a workflow"),
        ({"prompt": {"1": {"class_type": "NoSuchNode"}}}, "does not know these nodes: NoSuchNode"),
        ({"server": "http://127.0.0.1:9"}, "No ComfyUI answers at http://127.0.0.1:9"),
        ({"server": "ftp://here"}, "is not a server address"),
        ({"out": "workflow.json"}, "cannot be written"),
        ({"more": ["--comfyui", "x"]}, "--comfyui is for workers of Ray"),
    ],
)
def test_a_mistake_is_told_before_anything_is_queued(server, tmp_path, capsys, change, complaint):
    before = history(server)
    table = change.get("table", {"grid": {"Colour.color": [1, 2]}})
    arguments = write(tmp_path, change.get("prompt", slow(64, 1)), table)
    arguments[3] = str(tmp_path / change.get("out", "out"))
    assert main([*arguments, "--server", change.get("server", server.url), *change.get("more", [])]) == 1
    told = capsys.readouterr().err
    assert complaint in told
    assert "Traceback" not in told
    assert history(server) == before


def test_a_file_that_is_no_json_is_named(server, tmp_path, capsys):
    arguments = write(tmp_path, {}, {})
    (tmp_path / "workflow.json").write_text("{nodes")
    assert main([*arguments, "--server", server.url]) == 1
    assert "workflow.json is not valid JSON" in capsys.readouterr().err


def test_a_spreadsheet_is_run(server, tmp_path):
    arguments = write(tmp_path, slow(64, 1), {})
    (tmp_path / "table.csv").write_text("Colour.color\n255\n65280\n")
    arguments[1] = str(tmp_path / "table.csv")
    batch = start(*arguments, "--server", server.url)
    told, _ = batch.communicate(timeout=120)
    assert batch.returncode == 0, told
    assert "[2/2] color = 65280" in told
    assert [record["status"] for record in lines(tmp_path)] == ["done", "done"]


def test_servers_that_may_share_a_folder_name_their_files_apart(server, tmp_path):
    """One server under two names: each file has its prompt's id in its name."""
    other = server.url.replace("127.0.0.1", "localhost")
    command = write(tmp_path, slow(64, 1), {"list": {"Colour.color": [0xABCDE1, 0xABCDE2, 0xABCDE3]}})
    assert main([*command, "--server", server.url, other]) == 0
    records = lines(tmp_path)
    assert len(records) == 3
    for record in records:
        (file,) = record["files"]
        assert Path(file["path"]).name.startswith(f"slow_{record['prompt_id'][:8]}_")
    assert "filename_prefix" in (prompt := next((tmp_path / "out").glob("*/prompt.json"))).read_text()
    assert json.loads(prompt.read_text())["5"]["inputs"]["filename_prefix"] == "slow"


def test_a_dry_run_lists_what_would_be_run_and_queues_nothing(server, tmp_path, capsys):
    before = history(server)
    arguments = write(tmp_path, slow(64, 1), {"list": {"Colour.color": [1, 2, 3]}})
    assert main([*arguments, "--server", server.url, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to be run") == 3
    assert history(server) == before
