"""The client against servers of our own (aiohttp): TLS, errors, messages that come late or not at all."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from coherence.client import server as client
from coherence.client.errors import PromptError, ServerGone
from coherence.client.server import RunningServer
from coherence.client.waiting import Waiting
from coherence.hosting.provision import PACK

CERTIFICATE = Path(__file__).parents[1] / "support" / "localhost.pem"
ENTRY = {"outputs": {}, "status": {"status_str": "success", "messages": []}}
ASK = (
    "import sys, _enter_pack; _enter_pack.enter(); from coherence.client.server import RunningServer; "
    "print(RunningServer(sys.argv[1]).get('/echo?a=1%2F2')['asked'])"
)


class Comfy:
    """As much of ComfyUI's server as the client talks to: it keeps a history, and its socket does what it is told."""

    def __init__(self, talk: Callable[[web.WebSocketResponse, "Comfy", str], object]) -> None:
        self.talk, self.history, self.queued, self.sockets = talk, {}, 0, 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/echo", self._echo)
        app.router.add_get("/history/{id}", self._entry)
        app.router.add_get("/queue", self._nothing)
        app.router.add_post("/prompt", self._queue)
        app.router.add_get("/ws", self._socket)
        return app

    async def _echo(self, request: web.Request) -> web.Response:
        return web.json_response({"asked": request.raw_path})

    async def _entry(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        return web.json_response({key: entry for key, entry in self.history.items() if key == wanted})

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.json_response({"queue_running": [], "queue_pending": []})

    async def _queue(self, request: web.Request) -> web.Response:
        self.queued += 1
        order = await request.json()
        if not order["prompt"]:
            return web.json_response({"error": {"message": "no prompt", "details": ""}, "node_errors": {}}, status=400)
        return web.json_response({"prompt_id": order["prompt_id"], "node_errors": {}})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        self.sockets += 1
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        while not self.queued:
            await asyncio.sleep(0.01)
        await self.talk(answer, self, request.query["clientId"])
        return answer


@contextmanager
def running(app: web.Application, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serves ``app``; gives its address."""
    wait, runner = Waiting(), web.AppRunner(app)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "localhost", 0, ssl_context=tls)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    port = wait(start())
    yield f"{'https' if tls else 'http'}://localhost:{port}"
    wait(runner.cleanup())


def event(kind: str, prompt_id: str, **data: object) -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": prompt_id, **data}})


async def finishes(socket, comfy, prompt_id) -> None:
    """Progress of this prompt among that of others, a preview's bytes, and what packs broadcast."""
    step = {"1": {"display_node_id": "1", "value": 1, "max": 2}}
    await socket.send_bytes(b"a preview" * 100_000)
    await socket.send_str(event("progress_state", "another", nodes={"1": {}}))
    await socket.send_str(event("progress_state", prompt_id, nodes=step))
    for data in ("text", None, ["a", "list"], {}):
        await socket.send_str(json.dumps({"type": "a.pack", "data": data}))
    await socket.send_str('["no", "event"]')
    comfy.history[prompt_id] = ENTRY
    await socket.send_str(event("executing", prompt_id, node=None))


async def finishes_silently(socket, comfy, prompt_id) -> None:
    comfy.history[prompt_id] = ENTRY
    await socket.receive()


async def hangs_up_and_finishes(socket, comfy, prompt_id) -> None:
    comfy.history[prompt_id] = ENTRY
    await socket.close(code=4001, message=b"enough")


async def hangs_up(socket, *_) -> None:
    await socket.close(code=4001, message=b"enough")


@pytest.mark.parametrize("talk", [finishes, finishes_silently, hangs_up_and_finishes])
def test_a_prompt_is_followed_to_its_end_whatever_messages_come(talk, monkeypatch):
    if talk is finishes_silently:
        monkeypatch.setattr(client, "_QUIET_SECONDS", 0.2)
    seen = []
    comfy = Comfy(talk)
    with running(comfy.app()) as url:
        assert RunningServer(url).queue({"1": {}}, lambda *step: seen.append(step)) == ENTRY
    assert comfy.queued == 1
    assert seen == ([("1", 1, 2)] if talk is finishes else [])


def test_a_server_that_hangs_up_and_forgets_the_prompt_is_gone():
    with running(Comfy(hangs_up).app()) as url, pytest.raises(ServerGone, match=r"the connection ended.* 4001"):
        RunningServer(url).queue({"1": {}})


def test_a_refusal_and_a_page_that_is_not_there_are_told_as_they_are():
    with running(Comfy(hangs_up).app()) as url:
        with pytest.raises(PromptError, match="refused the prompt: no prompt"):
            RunningServer(url).queue({})
        with pytest.raises(urllib.error.HTTPError, match="404: Not Found"):
            RunningServer(url).get("/nothing-here")
    assert not RunningServer(url).is_there()


def test_it_waits_where_an_event_loop_runs_already():
    async def ask(url: str) -> str:
        return RunningServer(url).get("/echo?a=%2F..%2F")["asked"]

    wait = Waiting()
    with running(Comfy(hangs_up).app()) as url:
        assert wait(ask(url)) == "/echo?a=%2F..%2F", "nothing of an address is changed"


def test_https_reaches_a_server_that_can_prove_its_name_and_no_other():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    with running(Comfy(hangs_up).app(), tls) as url:
        told = {}
        for trusted in (os.devnull, str(CERTIFICATE)):
            env = os.environ | {"SSL_CERT_FILE": trusted}
            command = [sys.executable, "-c", ASK, url]
            told[trusted] = subprocess.run(command, cwd=PACK, env=env, capture_output=True, text=True, check=False)
    assert "CERTIFICATE_VERIFY_FAILED" in told[os.devnull].stderr
    assert told[str(CERTIFICATE)].stdout.strip() == "/echo?a=1%2F2", told[str(CERTIFICATE)].stderr
