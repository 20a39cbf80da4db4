"""The pack's code is clean by the tools that pyproject.toml configures: ruff and mypy."""

import os
import subprocess
import sys

import pytest
from coherence.hosting.provision import PACK
from coherence.hosting.workspace import link_folder

ROOMS = (
    "attention",
    "batching",
    "client",
    "demo",
    "files",
    "frames",
    "hosting",
    "metrics",
    "nodes",
    "noise",
    "samplers",
    "techniques",
    "training",
)


def run(*command: str, cwd=PACK, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    run("ruff", "check", ".")


def test_ruff_would_format_nothing():
    run("ruff", "format", "--check", ".")


def test_mypy_finds_nothing(tmp_path):
    link_folder(tmp_path / "coherence", PACK)  # the relative imports need a package, with a name that Python takes
    packages = [f"coherence.{room}" for room in ROOMS if any((PACK / room).glob("*.py"))]
    options = ["--config-file", str(PACK / "pyproject.toml"), "--cache-dir", str(PACK / ".mypy_cache")]
    run("mypy", *options, *(word for name in packages for word in ("-p", name)), cwd=tmp_path)


def test_no_file_is_longer_than_can_be_read_at_once():
    lengths = {
        path: len(path.read_text("utf-8").splitlines()) for path in PACK.rglob("*.py") if ".venv" not in path.parts
    }
    assert lengths
    assert not {path.name: length for path, length in lengths.items() if length > 400}


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME", "X" * 3])
def test_nothing_is_left_for_later(word):
    assert not [path.name for path in PACK.rglob("*.py") if word in path.read_text("utf-8")]
