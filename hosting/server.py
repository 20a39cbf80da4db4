"""A real ComfyUI server with the pack, in a data folder of its own."""

import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ..client.errors import PromptError
from ..client.process import ADDRESS, ServerProcess, free_port
from ..client.server import OnProgress, outputs
from .errors import HostError
from .provision import Host
from .workspace import prepare

__all__ = ["OnProgress", "PromptError", "Server", "free_port", "outputs"]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((ADDRESS, port)) == 0:
            raise HostError(f"Port {port} is in use: stop what listens there, or choose another with --port.")


class Server(ServerProcess):
    """A ComfyUI server with the pack, for the time of a ``with`` block.

    Args:
        host: Which ComfyUI.
        base: Its data folder; None is a temporary one, removed at the end.
        port: Port to listen on; None is a free one.
        arguments: More arguments for ComfyUI's main.py.

    Raises (on entering):
        HostError: the port is taken, or the server died or did not answer; with the last lines of its log.
    """

    def __init__(
        self, host: Host, base: Path | None = None, port: int | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self.host = host
        self._given_base, self._given_port, self._given_arguments = base, port, tuple(arguments)
        self.base: Path
        self.port: int
        self._cleanup = ExitStack()

    def __enter__(self) -> "Server":
        if self._given_port is not None:
            _require_free(self._given_port)
        with ExitStack() as cleanup:
            if self._given_base is None:
                folder = tempfile.TemporaryDirectory(prefix="coherence-", ignore_cleanup_errors=True)
                self.base = Path(cleanup.enter_context(folder)).resolve()
            else:
                self.base = self._given_base.absolute()
            self.port = self._given_port or free_port()
            arguments = [*prepare(self.base, self.host), *self._given_arguments]
            super().__init__(self.host.comfyui, self.host.python, self.port, self.base / "server.log", arguments)
            cleanup.callback(self.stop)
            self.wait_until_ready()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()
