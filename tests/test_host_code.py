"""What the code of host.py promises of itself: the standard library alone, right types on every system."""

import ast
import subprocess
import sys

import pytest
from coherence.hosting.provision import PACK

RUNS_IN_THE_HOST = "clip.py"
"""The one script that runs in ComfyUI's Python, whose packages it may use."""


def imported_modules(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_host_py_needs_nothing_but_python():
    files = [path for path in (PACK / "hosting").glob("*.py") if path.name != RUNS_IN_THE_HOST]
    assert len(files) > 10
    foreign = {path.name: imported_modules(path.read_text("utf-8")) - sys.stdlib_module_names for path in files}
    assert {name: modules for name, modules in foreign.items() if modules} == {}
    assert imported_modules((PACK / "host.py").read_text("utf-8")) <= {"sys", "hosting"}


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_hosting_is_typed_right_on_every_system(platform):
    options = ["--platform", platform, "--python-version", "3.10", "--ignore-missing-imports"]
    options += ["--cache-dir", f".mypy_cache/{platform}"]  # two processes at once would lock each other out
    command = [sys.executable, "-m", "mypy", *options, "-p", "hosting"]
    result = subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
