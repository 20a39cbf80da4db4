"""The installers: pip (gets uv and the source of ComfyUI) and uv (builds environments fast)."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..client.pythons import python_in, works
from .errors import HostError

NO_NETWORK = re.compile(
    r"name resolution|resolving|getaddrinfo|nodename nor servname|NewConnectionError|ConnectTimeout"
    r"|Max retries exceeded|Network is unreachable|dns error|error sending request",
    re.IGNORECASE,
)


def say(text: str) -> None:
    """Tell the user what happens now."""
    print(f"coherence: {text}", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], purpose: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command with its output in view of the user.

    Raises:
        HostError: it cannot be started or fails.
    """
    try:
        code = subprocess.run(command, stdout=sys.stderr, env=env, check=False).returncode
    except OSError as error:
        raise HostError(f"{purpose}: {command[0]} cannot be started: {error}") from error
    if code:
        raise HostError(
            f"{purpose} failed with exit code {code}; its reason stands above. If a name could not be "
            "resolved or a connection failed, this machine has no network: connect it and try again."
        )


def run_quietly(command: Sequence[str | Path], purpose: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command and show its last lines only if it fails; says so plainly when the network is missing."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, check=False)
    if result.returncode == 0:
        return
    output = result.stdout + result.stderr
    tail = "\n".join(output.strip().splitlines()[-12:])
    if NO_NETWORK.search(output):
        raise HostError(
            f"{purpose} failed: no network. Connect this machine and try again. The installer said:\n{tail}"
        )
    raise HostError(f"{purpose} failed:\n{tail}")


def is_debian_root() -> bool:
    """Whether packages can be installed with apt-get here without asking anyone."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> None:
    """Install Debian packages (only where ``is_debian_root``)."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run_quietly(["apt-get", "update"], "Reading the list of Debian packages", env)
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    run_quietly(install, f"Installing {' and '.join(packages)}", env)


@dataclass(frozen=True)
class Installers:
    """Commands to which arguments are added."""

    pip: tuple[str, ...]
    uv: tuple[str, ...]

    def uv_environment(self) -> dict[str, str]:
        """The process environment in which uv downloads from where the user's pip would."""
        env = dict(os.environ)
        if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & env.keys():
            command = [*self.pip, "config", "get", "global.index-url"]
            index = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            if index := env.get("PIP_INDEX_URL", index):
                env["UV_DEFAULT_INDEX"] = index
        return env


def installers(cache: Path) -> Installers:
    """pip and uv of this machine; what is missing goes into a small environment of our own in ``cache``."""
    pip: tuple[str, ...] = (sys.executable, "-m", "pip")
    uv: tuple[str, ...] = (shutil.which("uv") or "",)
    has_pip, has_uv = works([*pip, "--version"]), bool(uv[0]) and works([*uv, "--version"])
    if has_pip and has_uv:
        return Installers(pip, uv)
    tools = cache / "tools"
    python = python_in(tools)
    if not (works([python, "-m", "pip", "--version"]) and (has_uv or works([python, "-m", "uv", "--version"]))):
        shutil.rmtree(tools, ignore_errors=True)
        _create_seeded_environment(tools, uv if has_uv else None)
        if not has_uv:
            say("getting uv, which installs packages")
            run_quietly([python, "-m", "pip", "install", "--quiet", "uv"], "Installing uv")
    return Installers((str(python), "-m", "pip"), uv if has_uv else (str(python), "-m", "uv"))


def _create_seeded_environment(path: Path, uv: tuple[str, ...] | None) -> None:
    """A virtual environment with pip in it."""
    command = [sys.executable, "-m", "venv", str(path)]
    if works(command):
        return
    shutil.rmtree(path, ignore_errors=True)  # Debian's Python without python3-venv fails halfway
    if uv:
        run(
            [*uv, "venv", "--quiet", "--seed", "--python", sys.executable, path],
            "Creating an environment for pip",
        )
    elif is_debian_root():
        apt_install("python3-venv")
        run(command, "Creating an environment for pip")
    else:
        raise HostError(
            f"{sys.executable} cannot create virtual environments (on Debian and Ubuntu: install the package "
            "python3-venv), and uv is not installed. Install either, then try again."
        )
