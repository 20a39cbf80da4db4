"""ComfyUI servers that do not import again what others wrote: each is a fork of a process that has imported that much.

The process (multiprocessing's fork server, one for each process that runs tests) knows nothing of ComfyUI or of the
pack; the fork runs ComfyUI's main.py from its first line, without the imports that take most of a start. Tests of
host.py, of Ray and of a server that cannot start begin with a Python of their own.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from coherence.client import process
from coherence.hosting.provision import Host
from coherence.hosting.server import Server
from forked_main import run

IMPORTED = (
    "comfy_kitchen",
    "torch",
    "torchvision",
    "torchsde",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.llama.tokenization_llama",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.t5.tokenization_t5",
    "kornia",
    "scipy.integrate",
    "scipy.ndimage",
    "scipy.signal",
    "scipy.stats",
    "spandrel",
    "sqlalchemy.orm",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "alembic.command",
    "aiohttp.web",
    "pydantic_settings",
    "requests",
    "yaml",
    "av",
    "PIL.ImageDraw",
    "psutil",
    "einops",
)
"""What ComfyUI imports of others, where it takes long; a name that a host lacks is passed over."""
_HAS_GPU = any(each.is_available() for each in (torch.cuda, torch.xpu))
FORKS = sys.platform == "linux" and not _HAS_GPU
"""Elsewhere a process that has loaded torch may not be forked, or a GPU's settings are read as torch is imported."""
if FORKS:
    process._has_gpu[Path(sys.executable)] = False  # else a Python of its own is asked, which takes seconds


class Forked:
    """A fork, with as much of Popen as servers need."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str], log: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self._process = context.Process(target=run, args=(command, str(folder), dict(env), log))
        self._process.start()
        self.pid = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("main.py", timeout or 0.0)
        return self._process.exitcode


class ForkedServer(Server):
    """As ``Server``, sooner."""

    def _start(self, command: Sequence[str | Path], comfyui: Path, env: Mapping[str, str], printed: BinaryIO):
        if FORKS:
            return Forked([str(each) for each in command[1:]], comfyui, env, printed.name)
        return super()._start(command, comfyui, env, printed)


def run_forked(command: Sequence[str | Path], folder: Path, log: Path) -> int:
    """Run a script with its arguments in its folder; returns its exit code. What it prints goes to ``log``."""
    words = [str(each) for each in command]
    with log.open("wb") as printed:
        if FORKS:
            return Forked(words, folder, os.environ, str(log)).wait()
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=folder, stdout=printed, stderr=printed, check=False).returncode


def host_of(comfyui: Path) -> Host:
    """The ComfyUI that the tests run in, with their Python."""
    return Host(comfyui, Path(sys.executable), is_ours=False)
