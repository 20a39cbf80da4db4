"""Find the ComfyUI to work with: the user's own, or the provisioned one."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..client.locking import lock
from ..client.pythons import comfyui_around, python_of
from .errors import HostError
from .provision import NEWEST, PACK, RECIPES, Host, provision
from .tools import installers, run, say

PACK_REQUIREMENTS = PACK / "requirements.txt"
TEST_REQUIREMENTS = PACK / "requirements-dev.txt"
_MISSING = """
import importlib.metadata, json, sys
def is_missing(name):
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False
print(json.dumps([name for name in sys.argv[1:] if is_missing(name)]))
"""


def find_host(comfyui: str | None, python: str | None, cache: Path, version: str | None = None) -> Host:
    """The ComfyUI that was named or that this pack lies in; else the provisioned one.

    Args:
        comfyui: Folder of a ComfyUI; None looks at COMFYUI_PATH, then at ``custom_nodes/..``.
        python: Interpreter of that ComfyUI; None looks beside it.
        cache: Where a provisioned one is kept.
        version: Of the provisioned one, and then no other is looked for; None is the newest.
    """
    if version:
        if comfyui or python:
            raise HostError("--comfyui-version is for a ComfyUI of our own: leave out --comfyui and --python.")
        return provision(cache, RECIPES[version])
    if named := comfyui or os.environ.get("COMFYUI_PATH"):
        folder = Path(named).absolute()
        if not (folder / "main.py").is_file():
            raise HostError(
                f"{folder} is not a ComfyUI: it holds no main.py. Name the folder that does, or let host.py "
                "prepare a ComfyUI: without --comfyui and COMFYUI_PATH."
            )
        return _users_host(folder, python)
    if around := comfyui_around():
        return _users_host(around, python)
    if python:
        raise HostError("--python names the interpreter of a ComfyUI of yours: give --comfyui DIR too.")
    return provision(cache, RECIPES[NEWEST])


def _users_host(comfyui: Path, python: str | None) -> Host:
    host = Host(comfyui, Path(python).absolute() if python else python_of(comfyui), is_ours=False)
    if missing := _missing(host, ["torch", "aiohttp", "tqdm"]):
        raise HostError(
            f"{host.python} cannot run the ComfyUI in {comfyui}: it lacks {', '.join(missing)}. Name its Python "
            f"with --python, or run  {_pip_install(host, comfyui / 'requirements.txt')}"
        )
    _require_packages(host, PACK_REQUIREMENTS)
    return host


def _missing(host: Host, packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed for the host's Python."""
    try:
        result = subprocess.run([host.python, "-c", _MISSING, *packages], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError(f"{host.python} is not a working Python: {error}. Name another with --python.") from error
    return json.loads(result.stdout)


def _require_packages(host: Host, requirements: Path) -> None:
    """Raise HostError if a user's host lacks a package; nothing is installed into it unasked."""
    lines = requirements.read_text("utf-8").splitlines()
    names = [match[0] for match in (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines) if match]
    if missing := _missing(host, names):
        raise HostError(
            f"{host.python} lacks {', '.join(missing)}, and nothing is installed into your ComfyUI unasked. "
            f"Run  {_pip_install(host, requirements)}  or use a ComfyUI of our own: without --comfyui and "
            "COMFYUI_PATH."
        )


def _pip_install(host: Host, requirements: Path) -> str:
    return f"{host.python} -m pip install -r {requirements}"


def require_test_packages(host: Host, cache: Path) -> None:
    """Install what the tests need into our own host; of a user's host, say what is missing."""
    if not host.is_ours:
        _require_packages(host, TEST_REQUIREMENTS)
        return
    digest = hashlib.sha256(TEST_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    installed = host.comfyui.parent / f"test-packages-{digest}"
    if installed.exists():
        return
    with lock(cache / "provision.lock", on_wait=lambda: say("waiting for another run that installs packages")):
        if not installed.exists():
            say("installing what the tests need")
            tools = installers(cache)
            command: list[str | Path] = [*tools.uv, "pip", "install", "--python", host.python, "-r", TEST_REQUIREMENTS]
            run(command, "Installing the packages of the tests", tools.uv_environment())
            installed.touch()
