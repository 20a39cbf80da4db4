"""host.py as its users meet it: a process, its exit code and what it prints."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from coherence.client.errors import ComfyError
from coherence.client.pythons import python_in
from coherence.client.workflow import read_workflow
from coherence.hosting.demo import prompt_text_node, set_seed
from coherence.hosting.progress import ProgressBar
from coherence.hosting.provision import PACK
from PIL import Image

HOST_PY = PACK / "host.py"


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HOST_PY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)


def test_help_names_the_commands_and_where_comfyui_is_looked_for():
    result = run("--help")
    assert result.returncode == 0
    for word in ("demo", "test", "serve", "COMFYUI_PATH", "--comfyui"):
        assert word in result.stdout


def test_an_old_python_is_told_so():
    source = HOST_PY.read_text("utf-8")
    ast.parse(source, feature_version=(3, 4))
    pretend = f"import sys; sys.version_info = (3, 9, 0); exec(compile({source!r}, 'host.py', 'exec'))"
    result = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("host.py needs Python 3.10 or newer")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["demo", "--comfyui", "nowhere"], "is not a ComfyUI: it holds no main.py"),
        (["demo", "--python", os.devnull], "is not a working Python"),
        (["serve", "--port", "70000"], "expected a number from 1 to 65535, got '70000'"),
        (["demo", "--workflow", "nowhere.json", "--python", sys.executable], "nowhere.json cannot be read"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(arguments, complaint):
    result = run(*arguments)
    assert result.returncode in (1, 2)
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_the_comfyui_that_the_pack_lies_in_is_found(tmp_path):
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    for folder in ("client", "hosting"):
        shutil.copytree(PACK / folder, pack / folder)
    for file in ("__init__.py", "host.py", "_enter_pack.py", "requirements.txt"):
        shutil.copy(PACK / file, pack)
    (tmp_path / "ComfyUI" / "main.py").touch()
    command = [sys.executable, pack / "host.py", "demo", "--python", sys.executable, "--workflow", "nowhere.json"]
    env = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert "nowhere.json cannot be read" in result.stderr, "it got past the search for a host"


def test_a_bare_python_finds_the_host_and_the_hosts_python_goes_on():
    result = demo_of_a_bare_python()
    assert result.returncode == 1
    assert result.stderr.strip().startswith("host.py: The workflow nowhere.json cannot be read")


def demo_of_a_bare_python(*arguments, **env):
    command = [sys.executable, "-S", "-E", HOST_PY, "demo", "--workflow", "nowhere.json", "--python", sys.executable]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=os.environ | env, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("forbidden", "kept"), [("1", True), ("", False)])
def test_bytecode_that_may_not_be_written_beside_sources_is_kept_in_the_cache(forbidden, kept, tmp_path):
    own = {"PYTHONDONTWRITEBYTECODE": forbidden, "PYTHONPYCACHEPREFIX": "" if kept else str(tmp_path / "own")}
    demo_of_a_bare_python("--cache", tmp_path, **own)
    assert any((tmp_path / "bytecode").rglob("demo.*.pyc")) == kept
    assert any((tmp_path / "own").rglob("demo.*.pyc")) != kept


def test_a_python_without_torch_is_told_what_to_install(comfyui_path, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    result = run("demo", "--python", python_in(bare))
    assert result.returncode == 1
    assert (
        f"it lacks torch, aiohttp, tqdm. Name its Python with --python, or run  {python_in(bare)} -m pip"
        in result.stderr
    )


def test_a_workflow_that_is_no_json_is_named(tmp_path):
    (tmp_path / "workflow.json").write_text("{nodes")
    with pytest.raises(ComfyError, match=r"workflow\.json is not valid JSON"):
        read_workflow(tmp_path / "workflow.json")


@pytest.mark.slow
def test_arguments_and_exit_code_go_to_and_come_from_pytest(tmp_path):
    failing = tmp_path / "test_fails.py"
    slow = "import pytest\n@pytest.mark.slow\n"
    failing.write_text(f"{slow}def test_red(): assert False\ndef test_green(): pass\n")
    run_test = ("test", "--python", sys.executable, "--no-browser", "-p", "no:cacheprovider", failing)
    browsing = PACK / "tests" / "client" / "test_workflow_conversion.py"
    result = run(*run_test, browsing, "-n", "1", "-k", "test_red or test_green or as_in_the_browser")
    assert result.returncode == 1
    assert re.search("1 failed, 1 passed(, .*deselected)? in ", result.stdout), result.stdout
    assert "THE TESTS THAT DRIVE A BROWSER WERE LEFT OUT" in result.stdout
    quick = run(*run_test, "-n", "0", "--quick")
    assert quick.returncode == 0, "what is slow is left out"
    assert "1 passed, 1 deselected" in quick.stdout


@pytest.mark.slow
def test_the_demo_saves_clip_mp4_and_contact_sheet_and_says_where(comfyui_path, tmp_path):
    workflow = tmp_path / "two_frames.json"
    workflow.write_text(json.dumps(TWO_FRAMES))
    result = run("demo", "--python", sys.executable, "--workflow", workflow, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    paths = [line.removeprefix("Saved:").strip() for line in result.stdout.splitlines() if "Saved:" in line]
    assert {os.path.splitext(path)[1] for path in paths} == {".webp", ".png", ".mp4"}
    assert all(os.path.getsize(path) for path in paths)
    (clip,) = (path for path in paths if path.endswith(".webp"))
    assert Image.open(clip).n_frames == 2
    assert "2 frames at 8 per second" in result.stdout
    assert "Temporal consistency" in result.stdout
    assert "/?template=two_frames&source=ComfyUI-Coherence" in result.stdout
    assert "100%" in result.stderr, "no progress was shown"


def _image(node_id: int, colour: int, link: int) -> dict:
    output = {"name": "IMAGE", "type": "IMAGE", "links": [link]}
    return {"id": node_id, "type": "EmptyImage", "outputs": [output], "widgets_values": [64, 48, 1, colour]}


TWO_FRAMES = {
    "nodes": [
        _image(1, 0x336699, 1),
        _image(2, 0xEE8800, 2),
        {
            "id": 3,
            "type": "ImageBatch",
            "inputs": [{"name": f"image{i}", "type": "IMAGE", "link": i} for i in (1, 2)],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [3]}],
        },
        {
            "id": 4,
            "type": "SaveAnimatedWEBP",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 3}],
            "widgets_values": ["clip", 8, True, 90, "default"],
        },
    ],
    "links": [[1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 3, 1, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"]],
}


def test_the_prompt_is_the_text_that_reaches_the_positive_conditioning():
    prompt = {
        "1": {"inputs": {"text": "ugly"}, "class_type": "CLIPTextEncode"},
        "2": {"inputs": {"text": "a red star"}, "class_type": "CLIPTextEncode"},
        "3": {"inputs": {"conditioning_1": ["2", 0]}, "class_type": "ConditioningCombine"},
        "4": {"inputs": {"negative": ["1", 0], "positive": ["3", 0], "seed": 1}, "class_type": "KSampler"},
    }
    assert prompt_text_node(prompt) is prompt["2"]
    assert prompt_text_node({"1": prompt["1"]}) is None


def test_a_seed_is_set_everywhere_but_over_links():
    prompt = {
        "1": {"inputs": {"seed": 1, "steps": 2}},
        "2": {"inputs": {"noise_seed": 3}},
        "3": {"inputs": {"seed": ["9", 0]}},
        "4": {"inputs": {}},
    }
    set_seed(prompt, 77)
    inputs = [node["inputs"] for node in prompt.values()]
    assert inputs == [{"seed": 77, "steps": 2}, {"noise_seed": 77}, {"seed": ["9", 0]}, {}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_grows_to_the_end_and_a_log_is_not_flooded():
    reports = [("1", step, 100) for step in range(101)] + [("2", 0, 1), ("2", 1, 1)]
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        with ProgressBar({"1": "KSampler", "2": "VAE Decode", "3": "never reported"}, stream) as bar:
            for report in reports:
                bar.update(*report)
                bar.update(*report)
    percents = [int(number) for number in re.findall(r"(\d+)%", terminal.getvalue())]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
    assert "KSampler 50/100" in terminal.getvalue()
    assert [line.split("%")[0].strip() for line in log.getvalue().splitlines()] == ["8", "17", "25", "33", "67", "100"]
    assert "67%  VAE Decode\n" in log.getvalue()
