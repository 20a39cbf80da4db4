"""What the code of the command lines promises: they begin with the standard library, right types on every system."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coherence.client import process
from coherence.hosting.cli import PYTEST
from coherence.hosting.provision import PACK
from coherence.hosting.workspace import link_folder

TYPED = ("client", "hosting", "batching")


def imported_modules(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_command_lines_begin_with_nothing_but_python():
    imports = "; ".join(f"import coherence.{name}" for name in ("hosting.cli", "batching.cli"))
    code = f"{ENTERS}{imports}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    command = [sys.executable, "-S", "-E", "-c", code]
    told = subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert set(told.stdout.split()) - sys.stdlib_module_names == {"__main__", "_enter_pack", "coherence"}
    for name in ("host.py", "batch.py"):
        assert imported_modules((PACK / name).read_text("utf-8")) == {"sys", "_enter_pack", "coherence"}


ENTERS = "import _enter_pack, os, subprocess, sys; _enter_pack.enter(); "
ASKS = "import os; print(os.environ['OMP_WAIT_POLICY'])"


@pytest.mark.parametrize(("users", "expected"), [(None, "passive"), ("active", "active")])
def test_what_a_command_line_starts_does_not_spin_unless_the_user_wants_it(users, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if users:
        monkeypatch.setenv("OMP_WAIT_POLICY", users)
    child = f"{ENTERS} subprocess.run([sys.executable, '-S', '-c', {ASKS!r}])"
    told = subprocess.run([sys.executable, "-S", "-c", child], cwd=PACK, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == expected
    (tmp_path / "main.py").write_text(ASKS)
    monkeypatch.setattr(process, "has_gpu", lambda _: False)
    started = process.ServerProcess(tmp_path, Path(sys.executable), process.free_port(), tmp_path / "log")
    started.process.wait()
    assert started.log_tail() == expected


USES_THE_PACK = """
import sys
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]

def test_it():  # pytest imports the clone itself after it has collected, before a test runs
    sys.path.append(str(ROOT))
    import _enter_pack
    _enter_pack.enter()
    import coherence.noise
    assert Path(coherence.noise.__file__).is_relative_to(ROOT)
"""


@pytest.mark.parametrize("name", ["pack", "coherence"])
def test_a_clone_may_be_called_what_it_likes(name, tmp_path):
    clone = tmp_path / name
    for file in ("__init__.py", "_enter_pack.py", "pyproject.toml", "noise/__init__.py"):
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACK / file, clone / file)
    (clone / "tests").mkdir()
    (clone / "tests" / "test_it.py").write_text(USES_THE_PACK)
    command = [sys.executable, "-c", PYTEST, "-q", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("platform", [name for name in ("linux", "darwin", "win32") if name != sys.platform])
def test_hosting_is_typed_right_on_every_system(platform, tmp_path):
    """On this one it is by ``test_mypy_finds_nothing``, with the rest of the pack."""
    link_folder(tmp_path / "coherence", PACK)
    options = ["--platform", platform, "--python-version", "3.10", "--ignore-missing-imports"]
    options += ["--follow-imports", "skip"]  # the nodes have a test of their own
    # Two processes at once would lock each other out.
    options += ["--cache-dir", str(PACK / ".mypy_cache" / platform)]
    packages = [word for name in TYPED for word in ("-p", f"coherence.{name}")]
    command = [sys.executable, "-m", "mypy", *options, *packages]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
