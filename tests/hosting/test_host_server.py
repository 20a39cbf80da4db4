"""A real ComfyUI server with the pack, driven over HTTP and websocket."""

import io
import os
import signal
import socket
import subprocess
import sys

import pytest
from coherence.client.errors import ComfyError, PromptError
from coherence.client.process import free_port
from coherence.client.server import outputs
from coherence.hosting.cli import DEMO_WORKFLOW
from coherence.hosting.provision import PACK, PACK_NAME
from coherence.hosting.server import Server
from PIL import Image


def clip_prompt() -> dict:
    """Core nodes alone: a blue and an orange frame, saved as an animated WEBP."""
    size = {"width": 64, "height": 48, "batch_size": 1}
    save = {
        "images": ["3", 0],
        "filename_prefix": "clip",
        "fps": 8.0,
        "lossless": True,
        "quality": 80,
        "method": "default",
    }
    return {
        "1": {"class_type": "EmptyImage", "inputs": size | {"color": 0x336699}},
        "2": {"class_type": "EmptyImage", "inputs": size | {"color": 0xEE8800}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {"class_type": "SaveAnimatedWEBP", "inputs": save},
    }


def test_the_server_offers_the_packs_nodes(server):
    categories = {info["category"].split("/")[0] for info in server.object_info().values()}
    assert "coherence" in categories


def test_the_server_loads_the_pack_without_complaint(server):
    log, _, _ = server.log.read_text("utf-8").partition("got prompt")  # other tests' prompts fail on purpose
    assert PACK_NAME in log
    assert "IMPORT FAILED" not in log
    assert "Traceback" not in log
    assert (server.base / "user" / "comfyui.db").is_file(), "the database must lie in the data folder"


def test_the_example_that_the_demo_names_is_among_the_templates(server):
    assert DEMO_WORKFLOW.stem in server.get("/workflow_templates")[PACK_NAME]


def test_a_prompt_runs_with_progress_and_its_clip_can_be_downloaded(server):
    seen = []
    entry = server.queue(clip_prompt(), lambda *event: seen.append(event))
    assert entry["status"]["status_str"] == "success"
    assert {node for node, _, _ in seen} == {"1", "2", "3", "4"}
    assert any(value == maximum for _, value, maximum in seen)
    (file,) = outputs(entry)
    clip = Image.open(io.BytesIO(server.download(file)))
    assert (clip.n_frames, clip.size) == (2, (64, 48))
    assert clip.convert("RGB").getpixel((3, 3)) == (0x33, 0x66, 0x99)


def test_an_invalid_prompt_names_the_node_and_its_complaint(server):
    prompt = clip_prompt()
    prompt["1"]["inputs"]["width"] = -5
    with pytest.raises(PromptError, match=r"(?s)node 1 \(EmptyImage\).*width"):
        server.queue(prompt)


def test_an_invalid_branch_beside_a_valid_one_is_named_and_the_prompt_is_withdrawn(server):
    prompt = clip_prompt()
    prompt["5"] = {"class_type": "EmptyImage", "inputs": prompt["1"]["inputs"] | {"width": -5}}
    prompt["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    with pytest.raises(PromptError, match=r"(?s)branch of the prompt is invalid.*node 5 \(EmptyImage\).*width"):
        server.queue(prompt)
    assert server.queue(clip_prompt())["status"]["status_str"] == "success", "the withdrawal reaches that prompt alone"


def test_a_failing_node_is_named_with_its_error(server):
    prompt = clip_prompt()
    to_nothing = {"image": ["1", 0], "upscale_method": "bicubic", "scale_by": 0.01}
    prompt["1"]["inputs"] |= {"width": 1, "height": 1}
    prompt["5"] = {"class_type": "ImageScaleBy", "inputs": to_nothing}
    prompt["3"]["inputs"]["image1"] = ["5", 0]
    with pytest.raises(PromptError, match=r"node 5 \(ImageScaleBy\): RuntimeError: .+"):
        server.queue(prompt)


def test_a_port_in_use_is_refused_before_anything_starts(server):
    with (
        pytest.raises(ComfyError, match=f"Port {server.port} is in use"),
        Server(server.host, port=server.port),
    ):
        pass


@pytest.mark.slow
def test_a_server_that_dies_is_reported_with_the_end_of_its_log(server):
    dying = Server(server.host, arguments=["--no-such-option"])
    with pytest.raises(ComfyError, match=r"(?s)died with exit code 2.*--no-such-option"), dying:
        pass
    assert not dying.base.exists()


@pytest.mark.slow
def test_ctrl_c_stops_serve_cleanly(server, tmp_path):
    port = free_port()
    serve = [sys.executable, PACK / "host.py", "serve", "--port", str(port), "--cache", tmp_path]
    env = os.environ | {"COMFYUI_PATH": str(server.host.comfyui)}
    process = subprocess.Popen([*serve, "--python", sys.executable], env=env, stdout=subprocess.PIPE, text=True)
    assert f"http://127.0.0.1:{port}" in process.stdout.readline()
    second = subprocess.run([*serve, "--python", sys.executable], env=env, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "Another `host.py serve` uses" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server still runs"
