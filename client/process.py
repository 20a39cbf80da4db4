"""Start a ComfyUI server as a process of its own, and stop it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from .errors import ComfyError, ServerGone
from .server import Json, OnProgress, RunningServer

ADDRESS = "127.0.0.1"
_HAS_GPU = """
import torch
backends = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", None))
raise SystemExit(not any(backend is not None and backend.is_available() for backend in backends))
"""


_has_gpu: dict[Path, bool] = {}  # no functools.cache: Ray cannot send it where the pack is not installed


def has_gpu(python: Path) -> bool:
    """Whether the torch of this interpreter finds a GPU. To import torch takes seconds: asked once."""
    if python not in _has_gpu:
        asked = subprocess.run([python, "-c", _HAS_GPU], capture_output=True, check=False)
        _has_gpu[python] = asked.returncode == 0
    return _has_gpu[python]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


class ServerProcess(RunningServer):
    """A ComfyUI server that runs until ``stop``.

    Args:
        comfyui: The folder that holds its main.py.
        python: The interpreter that runs it.
        port: Port of this machine to listen on.
        log: File for what it prints.
        arguments: More arguments for main.py.
    """

    def __init__(self, comfyui: Path, python: Path, port: int, log: Path, arguments: Sequence[str] = ()) -> None:
        super().__init__(f"http://{ADDRESS}:{port}")
        self.log = log
        device = [] if has_gpu(python) else ["--cpu"]
        listen = ["--listen", ADDRESS, "--port", str(port), "--disable-auto-launch", *device]
        command: list[str | Path] = [python, "main.py", *listen, *arguments]
        env = {"OMP_WAIT_POLICY": "passive"} | os.environ  # on the machine of a Ray worker, too
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with log.open("wb") as printed:
            self.process = self._start(command, comfyui, env, printed)

    def _start(
        self, command: Sequence[str | Path], comfyui: Path, env: Mapping[str, str], printed: BinaryIO
    ) -> "subprocess.Popen[bytes]":
        # A group of its own: Ctrl-C reaches only us, and we stop it.
        new_group = 0
        if sys.platform == "win32":
            new_group = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            command,
            cwd=comfyui,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            creationflags=new_group,
            start_new_session=sys.platform != "win32",
        )

    def stop(self) -> None:
        """End it: politely, then not."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait_until_ready(self, seconds: float = 300.0) -> None:
        """Return when it answers; ComfyError with the end of its log if it dies or does not."""
        deadline = time.monotonic() + seconds
        while not self.is_there():
            self.require_alive()
            if time.monotonic() > deadline:
                raise ComfyError(f"ComfyUI did not answer within {seconds:.0f} s. Its log ends:\n{self.log_tail()}")
            time.sleep(0.3)

    def require_alive(self) -> None:
        """Raise ComfyError with the end of the log if the server has ended."""
        code = self.process.poll()
        if code is not None:
            raise ServerGone(f"The ComfyUI server died with exit code {code}. Its log ends:\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-lines:])

    def wait(self) -> None:
        """Return only when the server ends; raises ServerGone then."""
        self.process.wait()
        self.require_alive()

    def queue(self, prompt: Json, on_progress: OnProgress = lambda *_: None, prompt_id: str | None = None) -> Json:
        """As ``RunningServer.queue``; what is raised ends with the log of a server that died."""
        try:
            return super().queue(prompt, on_progress, prompt_id)
        except ServerGone as error:
            time.sleep(1.0)  # a dying process is not dead at once
            self.require_alive()
            raise ServerGone(f"{error} Its log ends:\n{self.log_tail()}") from error
