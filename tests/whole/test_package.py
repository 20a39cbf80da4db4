"""What the registry gets: the tracked files that .comfyignore leaves, as `comfy node pack` zips them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from coherence.hosting.provision import PACK, PACK_NAME
from PIL import Image

LOADED = """
import asyncio, importlib.util, sys
sys.path.insert(0, sys.argv[1])
import comfy.options
from comfy.cli_args import args
args.cpu = True
import comfy.samplers, comfy.sd, comfy_api.latest
host = set(sys.modules)
spec = importlib.util.spec_from_file_location("pack", "__init__.py", submodule_search_locations=["."])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print("nodes:", *(node.GET_SCHEMA().node_id for node in nodes))
print("libraries:", *sorted({name.partition(".")[0] for name in set(sys.modules) - host}))
"""
HEAVY = {"matplotlib", "kornia", "av", "scipy", "transformers", "pandas", "torchvision", "sklearn"}


def git(*arguments: str, **options) -> list[str]:
    command = ["git", "-c", f"core.excludesFile={PACK / '.comfyignore'}", *arguments]
    return subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=False, **options).stdout.splitlines()


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the packed files."""
    tracked = git("ls-files")
    left_out = set(git("check-ignore", "--no-index", "--stdin", input="\n".join(tracked)))
    folder = tmp_path_factory.mktemp("package")
    for name in tracked:
        if name not in left_out and (PACK / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PACK / name, folder / name)
    return folder


def test_the_package_is_small(package, tmp_path):
    path = tmp_path / "node.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in package.rglob("*"):
            packed.write(file, file.relative_to(package))
    print(f"packed: {path.stat().st_size:,} bytes")
    assert path.stat().st_size < 2_000_000


def test_nothing_that_only_developers_need_is_in_the_package(package):
    names = {path.name for path in package.iterdir()}
    assert not names & {"tests", "benchmarks", "hosting", "host.py", ".ci", ".github"}
    assert not list(package.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def loaded(package, comfyui_path) -> dict[str, list[str]]:
    """What the package alone gives ComfyUI, and what it imports beyond it."""
    command = [sys.executable, "-c", LOADED, str(comfyui_path)]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    told = (line.split() for line in done.stdout.splitlines())
    return {words[0]: words[1:] for words in told if words and words[0] in ("nodes:", "libraries:")}


@pytest.mark.slow
def test_every_node_loads_from_the_package_alone(loaded):
    assert sorted(loaded["nodes:"]) == sorted(path.stem for path in (PACK / "web" / "docs").glob("*.md"))


@pytest.mark.slow
def test_loading_the_pack_loads_no_heavy_library(loaded):
    assert "pack" in loaded["libraries:"]
    assert not HEAVY & set(loaded["libraries:"])


def test_help_pages_in_the_package_have_their_pictures(package):
    for page in (package / "web" / "docs").glob("*.md"):
        for link in re.findall(r"!\[[^]]*]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


def test_pyproject_says_what_the_registry_asks_for():
    settings = dict(re.findall(r'^([\w-]+) = "(.*)"$', (PACK / "pyproject.toml").read_text("utf-8"), re.MULTILINE))
    assert settings["PublisherId"]
    assert settings["DisplayName"] == PACK_NAME
    assert re.fullmatch(r">=\d+\.\d+\.\d+", settings["requires-comfyui"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", settings["version"])
    with Image.open(PACK / settings["Icon"]) as icon:
        assert icon.size[0] == icon.size[1] <= 400


def test_batches_can_be_run_from_the_package(package):
    command = [sys.executable, "-S", "-E", str(package / "batch.py"), "--help"]  # as a Python without packages would
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WORKFLOW TABLE" in done.stdout
