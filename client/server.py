"""Talk to a ComfyUI server as a browser does: HTTP for orders, a websocket for progress."""

import asyncio
import io
import json
import time
import urllib.error
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

import aiohttp
from yarl import URL

from .errors import ComfyError, PromptError, ServerGone
from .waiting import Waiting

Json = dict[str, Any]
OnProgress = Callable[[str, float, float], None]
"""Called with the node's id, its value and its maximum."""

AWAY = (OSError, aiohttp.ClientError, asyncio.TimeoutError, json.JSONDecodeError, UnicodeDecodeError)
"""What is raised when a server is not there, or goes away in the middle of an answer."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
_LARGEST_MESSAGE = 1 << 28
_QUIET_SECONDS = 5.0  # without a message: then the history is asked, for a message may have been lost


class RunningServer:
    """A ComfyUI server at an address like ``http://127.0.0.1:8188``.

    Raises:
        ComfyError: ``url`` is not an address.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ComfyError(f"{url!r} is not a server address: expected one like http://127.0.0.1:8188.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        # A proxy of the user must not catch requests to this machine.
        self._may_use_proxies = parts.hostname not in ("127.0.0.1", "::1", "localhost")
        self._waiting: Waiting | None = None

    def get(self, path: str) -> Any:
        """The JSON at ``path``."""
        return json.loads(self._request("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """POST ``body`` as JSON; returns the JSON answered, None for an empty answer."""
        answer = self._request("POST", path, json=body)
        return json.loads(answer) if answer else None

    def _request(self, method: str, path: str, **options: Any) -> bytes:
        async def ask() -> bytes:
            async with self._session() as session, session.request(method, self._at(path), **options) as response:
                body = await response.read()
                if response.status >= 400:
                    said = (response.reason or "", Message(), io.BytesIO(body))
                    raise urllib.error.HTTPError(self.url + path, response.status, *said)
                return body

        return self._wait(ask())

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(trust_env=self._may_use_proxies, timeout=_TIMEOUT)

    def _at(self, path: str) -> URL:
        return URL(self.url + path, encoded=True)

    def _wait(self, coroutine: Any) -> Any:
        if self._waiting is None:
            self._waiting = Waiting()
        return self._waiting(coroutine)

    def is_there(self) -> bool:
        """Whether a ComfyUI answers."""
        try:
            answer = self.get("/system_stats")
        except AWAY:
            return False
        return isinstance(answer, dict) and "system" in answer

    def object_info(self) -> Json:
        """Every node's inputs and outputs, by node id."""
        return self.get("/object_info")

    def download(self, file: dict[str, str]) -> bytes:
        """The bytes of an output, given as ``outputs`` lists it."""
        return self._request("GET", "/view?" + urllib.parse.urlencode(file))

    def queue(self, prompt: Json, on_progress: OnProgress = lambda *_: None, prompt_id: str | None = None) -> Json:
        """Run a prompt (API format) to its end; returns its entry of ComfyUI's history.

        Args:
            prompt: Node id → ``class_type`` and ``inputs``.
            on_progress: Told how far the nodes are.
            prompt_id: A UUID; with one that the server knows already, the prompt is waited for and not queued again.

        Raises:
            PromptError: the prompt, or a branch of it that ComfyUI would leave out, is invalid, or a node failed.
            ServerGone: the server went away.
        """
        known = prompt_id is not None and self._asks(self.knows, prompt_id)
        prompt_id = prompt_id or str(uuid.uuid4())
        while True:
            try:
                # Connected before the prompt is queued, so that no message is missed.
                with self._connect(prompt_id) as socket:
                    if not known:
                        prompt_id = self._submit(prompt, prompt_id)
                        known = True
                    return self._follow(socket, prompt_id, on_progress)
            except AWAY as error:
                # Perhaps the connection alone was lost, and the prompt goes on.
                if not known or not self._asks(self.knows, prompt_id):
                    raise ServerGone(f"ComfyUI at {self.url} went away: {error}.") from error
                if entry := self._asks(self._finished, prompt_id):
                    return entry
                time.sleep(1.0)

    def _asks(self, question: Callable[[str], Any], prompt_id: str) -> Any:
        """What it answers; None without a server."""
        try:
            return question(prompt_id)
        except AWAY:
            return None

    def _finished(self, prompt_id: str) -> Json | None:
        """The prompt's entry in the history, once it has run."""
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        if entry:
            _require_success(entry)
        return entry

    def knows(self, prompt_id: str) -> bool:
        """Whether the prompt waits, runs or has run."""
        if self.get(f"/history/{prompt_id}"):
            return True
        waiting = self.get("/queue")
        # It may have ended between the two questions.
        items = waiting["queue_running"] + waiting["queue_pending"]
        return any(item[1] == prompt_id for item in items) or bool(self.get(f"/history/{prompt_id}"))

    def forget(self, prompt_id: str) -> None:
        """Forget what a prompt gave, and what all nodes gave: the same prompt again saves its files anew."""
        self.post("/history", {"delete": [prompt_id]})
        self.post("/free", {"free_memory": True})

    def withdraw(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or interrupt it."""
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})

    @contextmanager
    def _connect(self, prompt_id: str) -> Iterator[aiohttp.ClientWebSocketResponse]:
        async def connect() -> tuple[aiohttp.ClientSession, Any]:
            session = self._session()
            try:
                # The prompt's id names the client, too: whoever waits for it later gets its messages.
                url, patience = self._at(f"/ws?clientId={prompt_id}"), aiohttp.ClientWSTimeout(ws_close=1.0)
                return session, await session.ws_connect(url, timeout=patience, max_msg_size=_LARGEST_MESSAGE)
            except BaseException:  # Ctrl-C cancels this, too
                await session.close()
                raise

        async def close() -> None:
            async with session:
                await socket.close()

        session, socket = self._wait(connect())
        try:
            yield socket
        finally:
            self._wait(close())

    def _submit(self, prompt: Json, prompt_id: str) -> str:
        """Queue a prompt; returns the id it got."""
        order = {"prompt": prompt, "client_id": prompt_id, "prompt_id": prompt_id}
        try:
            answer = self.post("/prompt", order)
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise PromptError(_describe_refusal(json.loads(error.read()))) from error
            raise ServerGone(f"ComfyUI at {self.url} answered a prompt with {error}.") from error
        if answer["node_errors"]:
            self.withdraw(answer["prompt_id"])
            raise PromptError(_describe("A branch of the prompt is invalid", answer["node_errors"]))
        return answer["prompt_id"]

    def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> str | bytes | None:
        """The next message; None if none comes for a while."""
        try:
            message = self._wait(socket.receive(_QUIET_SECONDS))
        except asyncio.TimeoutError:
            return None
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return message.data
        raise ConnectionError(f"the connection ended ({message.type.name.lower()}: {message.data})")

    def _follow(self, socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_progress: OnProgress) -> Json:
        since = time.monotonic()
        while True:
            kind, data = _event(self._receive(socket), prompt_id) or ("", {})
            if kind == "progress_state":
                for node in data["nodes"].values():
                    on_progress(node["display_node_id"], node["value"], node["max"])
            elif kind == "execution_error":
                raise PromptError(_describe_failure(data))
            elif kind == "execution_interrupted":
                raise PromptError("The prompt was interrupted.")
            # execution_success comes earlier, before the history holds the prompt.
            is_over = kind == "executing" and data["node"] is None
            if not is_over and time.monotonic() - since < _QUIET_SECONDS:
                continue
            since = time.monotonic()
            if entry := self._finished(prompt_id):
                return entry
            if not self.knows(prompt_id):
                raise ServerGone(f"ComfyUI at {self.url} has forgotten the prompt: it was started anew, or cleared.")


def outputs(entry: Json, kind: str = "output") -> list[dict[str, str]]:
    """The files that a prompt saved, in the order of its nodes; ``kind`` is output or temp."""
    results = [result for node in entry["outputs"].values() for result in node.values()]
    files = [file for result in results for file in result if isinstance(file, dict) and "filename" in file]
    return [file for file in files if file.get("type") == kind]


def _event(message: str | bytes | None, prompt_id: str) -> tuple[str, Json] | None:
    """Kind and data of a message about the prompt; None for others, and for preview pictures."""
    if not isinstance(message, str):
        return None
    event = json.loads(message)
    data = event.get("data") if isinstance(event, dict) else None  # packs send what they like
    return (event["type"], data) if isinstance(data, dict) and data.get("prompt_id") == prompt_id else None


def _require_success(entry: Json) -> None:
    """Raise what the messages said, from the history, for those who were not there."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            raise PromptError(_describe_failure(data))
        if kind == "execution_interrupted":
            raise PromptError("The prompt was interrupted.")


def _describe_failure(data: Json) -> str:
    node = f"node {data['node_id']} ({data['node_type']})"
    return f"{node}: {data['exception_type']}: {data['exception_message'].strip()}"


def _describe_refusal(answer: Json) -> str:
    error = answer["error"]
    headline = f"ComfyUI refused the prompt: {error['message']} {error.get('details', '')}".rstrip()
    return _describe(headline, answer.get("node_errors") or {})


def _describe(headline: str, node_errors: Json) -> str:
    lines = [headline]
    for node_id, node in node_errors.items():
        complaints = (f"{item['message']}: {item['details']}" for item in node["errors"])
        lines += [f"  node {node_id} ({node['class_type']}): {complaint}" for complaint in complaints]
    return "\n".join(lines)
