"""Which Python runs what, with the standard library alone: command lines begin in any Python and go on in ComfyUI's."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from .errors import ComfyError

PACK = Path(__file__).absolute().parent.parent


def python_in(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def python_of(comfyui: Path) -> Path:
    """The Python beside a ComfyUI; this one, if there is none."""
    environments = [folder / name for folder in (comfyui, comfyui.parent) for name in ("venv", ".venv")]
    beside = [*map(python_in, environments), comfyui.parent / "python_embeded" / "python.exe"]
    return next((path for path in beside if path.is_file()), Path(sys.executable))


def comfyui_around() -> Path | None:
    """The ComfyUI that this pack lies in."""
    folder = PACK.parent.parent
    return folder if PACK.parent.name == "custom_nodes" and (folder / "main.py").is_file() else None


def default_cache() -> Path:
    """Where host.py prepares a ComfyUI: COHERENCE_CACHE, or this system's folder for caches."""
    if path := os.environ.get("COHERENCE_CACHE"):
        return Path(path).absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "comfyui-coherence"


def works(command: Sequence[str | Path]) -> bool:
    """Whether a command can be started and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def lacking(modules: Sequence[str]) -> list[str]:
    """Those of the modules that this Python does not have."""
    return [module for module in modules if find_spec(module) is None]


def python_with(modules: Sequence[str]) -> Path:
    """A Python of a ComfyUI that has the modules: of the one around the pack, of COMFYUI_PATH, or one in the cache.

    Raises:
        ComfyError: there is none; it says what to install.
    """
    command = f"import {', '.join(modules)}"
    for python in _pythons():
        if works([python, "-c", command]):
            return python
    raise ComfyError(
        f"{sys.executable} lacks {' and '.join(lacking(modules))}, and no ComfyUI was found whose Python has them. Run "
        f"this with ComfyUI's Python, or  {sys.executable} -m pip install {' '.join(modules)}"
    )


def _pythons() -> Iterator[Path]:
    named = os.environ.get("COMFYUI_PATH")
    for comfyui in (comfyui_around(), Path(named) if named else None):
        if comfyui and (python := python_of(comfyui.absolute())) != Path(sys.executable):
            yield python
    prepared = sorted(default_cache().glob("hosts/*/venv"), key=lambda path: path.stat().st_mtime, reverse=True)
    yield from map(python_in, prepared)


def go_on(command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
    """Become another program, where the system knows that; else run it and return its exit code."""
    environment = dict(os.environ if env is None else env)
    words = list(map(str, command))
    if sys.platform != "win32":
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if cwd:
            os.chdir(cwd)
        os.execve(words[0], words, environment)
    process = subprocess.Popen(words, env=environment, cwd=cwd)
    # Ctrl-C reaches it too: it gets the time to end what it has begun. A polite kill is passed on.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()
