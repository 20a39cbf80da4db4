"""What the code of host.py promises of itself: the standard library alone, right types on every system."""

import ast
import subprocess
import sys

import pytest
from coherence.hosting.provision import PACK
from coherence.hosting.workspace import link_folder

RUNS_IN_THE_HOST = "clip.py"
"""The one script that runs in ComfyUI's Python, whose packages it may use."""
STANDARD = ("client", "hosting")


def imported_modules(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_host_py_needs_nothing_but_python():
    files = [path for name in STANDARD for path in (PACK / name).glob("*.py") if path.name != RUNS_IN_THE_HOST]
    assert len(files) > 10
    foreign = {path.name: imported_modules(path.read_text("utf-8")) - sys.stdlib_module_names for path in files}
    assert {name: modules for name, modules in foreign.items() if modules} == {}
    assert imported_modules((PACK / "host.py").read_text("utf-8")) <= {"sys", "pack", "coherence"}
    assert imported_modules((PACK / "pack.py").read_text("utf-8")) <= sys.stdlib_module_names


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_hosting_is_typed_right_on_every_system(platform, tmp_path):
    link_folder(tmp_path / "coherence", PACK)
    options = ["--platform", platform, "--python-version", "3.10", "--ignore-missing-imports"]
    options += ["--follow-imports", "skip"]  # the nodes have a test of their own
    # Two processes at once would lock each other out.
    options += ["--cache-dir", str(PACK / ".mypy_cache" / platform)]
    packages = [word for name in (*STANDARD, "batching") for word in ("-p", f"coherence.{name}")]
    command = [sys.executable, "-m", "mypy", *options, *packages]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
