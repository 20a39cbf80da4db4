"""Start a real ComfyUI server and talk to it as a browser does: HTTP for orders, a websocket for progress."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .errors import HostError
from .provision import Host
from .websocket import WebSocket
from .workspace import prepare

ADDRESS = "127.0.0.1"
OnProgress = Callable[[str, float, float], None]
"""Called with the node's id, its value and its maximum."""

# A proxy of the user must not catch requests to this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_HAS_GPU = """
import torch
backends = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", None))
raise SystemExit(not any(backend is not None and backend.is_available() for backend in backends))
"""


class PromptError(HostError):
    """ComfyUI refused a prompt, or a node of it failed; the text names the nodes and their complaints."""


def has_gpu(python: Path) -> bool:
    """Whether the torch of this interpreter finds a GPU."""
    return subprocess.run([python, "-c", _HAS_GPU], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((ADDRESS, port)) == 0:
            raise HostError(f"Port {port} is in use: stop what listens there, or choose another with --port.")


class Server:
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
        self._given_base, self._given_port, self._arguments = base, port, tuple(arguments)
        self.base: Path
        self.port: int
        self.process: subprocess.Popen[bytes]
        self._cleanup = ExitStack()

    @property
    def url(self) -> str:
        """Address of the user interface, without a slash at the end."""
        return f"http://{ADDRESS}:{self.port}"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.base / "server.log"

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
            self._start(cleanup)
            self._wait_until_ready()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _start(self, cleanup: ExitStack) -> None:
        device = [] if has_gpu(self.host.python) else ["--cpu"]
        listen = ["--listen", ADDRESS, "--port", str(self.port), "--disable-auto-launch", *device]
        command: list[str | Path] = [
            self.host.python,
            "main.py",
            *listen,
            *prepare(self.base, self.host),
            *self._arguments,
        ]
        log = cleanup.enter_context(self.log.open("wb"))
        # A group of its own: Ctrl-C reaches only us, and we stop it.
        new_group = 0
        if sys.platform == "win32":
            new_group = subprocess.CREATE_NEW_PROCESS_GROUP
        env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            command,
            cwd=self.host.comfyui,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            creationflags=new_group,
            start_new_session=sys.platform != "win32",
        )
        cleanup.callback(self._stop)

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _wait_until_ready(self, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.require_alive()
            try:
                self.get("/system_stats")
            except OSError:
                time.sleep(0.3)
            else:
                return
        raise HostError(f"ComfyUI did not answer within {seconds:.0f} s. Its log ends:\n{self.log_tail()}")

    def require_alive(self) -> None:
        """Raise HostError with the end of the log if the server has ended."""
        code = self.process.poll()
        if code is not None:
            raise HostError(f"The ComfyUI server died with exit code {code}. Its log ends:\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-lines:])

    def wait(self) -> None:
        """Return only when the server ends; raises HostError then."""
        self.process.wait()
        self.require_alive()

    def get(self, path: str) -> Any:
        """The JSON at ``path``."""
        return json.loads(self._request(path))

    def post(self, path: str, body: Any) -> Any:
        """POST ``body`` as JSON; returns the JSON answered, None for an empty answer."""
        answer = self._request(path, json.dumps(body).encode(), "application/json")
        return json.loads(answer) if answer else None

    def _request(self, path: str, data: bytes | None = None, content_type: str = "") -> bytes:
        headers = {"Content-Type": content_type} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, headers)
        with _OPENER.open(request, timeout=60) as response:
            return response.read()

    def object_info(self) -> dict[str, Any]:
        """Every node's inputs and outputs, by node id."""
        return self.get("/object_info")

    def upload_image(self, path: Path) -> str:
        """Put a file into ComfyUI's input folder; returns the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return f"{answer['subfolder']}/{answer['name']}".lstrip("/")

    def download(self, file: dict[str, str]) -> bytes:
        """The bytes of an output, given as ``outputs`` lists it."""
        return self._request("/view?" + urllib.parse.urlencode(file))

    def queue(self, prompt: dict[str, Any], on_progress: OnProgress = lambda *_: None) -> dict[str, Any]:
        """Run a prompt (API format) to its end; returns its entry of ComfyUI's history.

        Raises:
            PromptError: the prompt, or a branch of it that ComfyUI would leave out, is invalid, or a node failed.
            HostError: the server died.
        """
        client = uuid.uuid4().hex
        # Connected before the prompt is queued, so that no message is missed.
        with WebSocket(ADDRESS, self.port, f"/ws?clientId={client}") as socket_:
            try:
                answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            except urllib.error.HTTPError as error:
                if error.code == 400:
                    raise PromptError(_describe_refusal(json.loads(error.read()))) from error
                raise HostError(f"ComfyUI answered a prompt with {error}. Its log ends:\n{self.log_tail()}") from error
            prompt_id = answer["prompt_id"]
            if answer["node_errors"]:
                self.post("/queue", {"delete": [prompt_id]})
                self.post("/interrupt", {"prompt_id": prompt_id})
                raise PromptError(_describe("A branch of the prompt is invalid", answer["node_errors"]))
            self._follow(socket_, prompt_id, on_progress)
        return self.get(f"/history/{prompt_id}")[prompt_id]

    def _follow(self, socket_: WebSocket, prompt_id: str, on_progress: OnProgress) -> None:
        while True:
            self.require_alive()
            try:
                message = socket_.receive(timeout=5.0)
            except TimeoutError:
                continue
            except ConnectionError as error:
                time.sleep(1.0)  # a dying process is not dead at once
                self.require_alive()
                raise HostError(f"ComfyUI hung up: {error}. Its log ends:\n{self.log_tail()}") from error
            if isinstance(message, bytes):
                continue  # a preview picture
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "progress_state":
                for node in data["nodes"].values():
                    on_progress(node["display_node_id"], node["value"], node["max"])
            elif kind == "execution_error":
                node = f"node {data['node_id']} ({data['node_type']})"
                raise PromptError(f"{node}: {data['exception_type']}: {data['exception_message'].strip()}")
            elif kind == "execution_interrupted":
                raise PromptError("The prompt was interrupted.")
            elif kind == "executing" and data["node"] is None:
                return  # execution_success comes earlier, before the history holds the prompt


def outputs(entry: dict[str, Any], kind: str = "output") -> list[dict[str, str]]:
    """The files that a prompt saved, in the order of its nodes; ``kind`` is output or temp."""
    results = [result for node in entry["outputs"].values() for result in node.values()]
    files = [file for result in results for file in result if isinstance(file, dict) and "filename" in file]
    return [file for file in files if file.get("type") == kind]


def _describe_refusal(answer: dict[str, Any]) -> str:
    error = answer["error"]
    headline = f"ComfyUI refused the prompt: {error['message']} {error.get('details', '')}".rstrip()
    return _describe(headline, answer.get("node_errors") or {})


def _describe(headline: str, node_errors: dict[str, Any]) -> str:
    lines = [headline]
    for node_id, node in node_errors.items():
        complaints = (f"{item['message']}: {item['details']}" for item in node["errors"])
        lines += [f"  node {node_id} ({node['class_type']}): {complaint}" for complaint in complaints]
    return "\n".join(lines)
