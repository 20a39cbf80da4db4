"""The websocket client against a real server (aiohttp), and against raw frames that a server may send."""

import asyncio
import base64
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web
from coherence.client.websocket import WebSocket, WebSocketClosed, WebSocketError
from hypothesis import given, settings
from hypothesis import strategies as st

HOST = "127.0.0.1"
CERTIFICATE = Path(__file__).with_name("localhost.pem")


async def _answer(request: web.Request) -> web.WebSocketResponse:
    """Echoes; pings first on "ping", closes on "close"."""
    answer = web.WebSocketResponse(max_msg_size=1 << 24)
    await answer.prepare(request)
    async for message in answer:
        if message.type == WSMsgType.TEXT and message.data == "ping":
            await answer.ping(b"are you there")
            await answer.send_str("pinged")
        elif message.type == WSMsgType.TEXT and message.data == "close":
            await answer.close(code=4001, message=b"enough")
        elif message.type == WSMsgType.TEXT:
            await answer.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await answer.send_bytes(message.data)
    return answer


@contextmanager
def echo_server(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A real aiohttp server in a thread of its own; its port."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/ws", _answer)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, HOST, 0, ssl_context=tls)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    """Port of a server without TLS."""
    with echo_server() as port:
        yield port


def test_messages_go_over_tls_to_a_server_that_can_prove_its_name_and_to_no_other(monkeypatch):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    with echo_server(tls) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            WebSocket(HOST, port, "/ws", is_secure=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        with WebSocket(HOST, port, "/ws", is_secure=True) as client:
            client.send("x" * 300_000)
            assert client.receive(10) == "x" * 300_000
            with pytest.raises(TimeoutError):
                client.receive(0.05)
            client.send(b"after the timeout")
            assert client.receive(10) == b"after the timeout"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 300_000])
def test_messages_of_every_length_encoding_come_back(echo_port, size):
    text = ("ü" + "x" * size)[:size]
    with WebSocket(HOST, echo_port, "/ws") as client:
        client.send(text)
        assert client.receive(10) == text
        client.send(bytes(range(256)) * (size // 256) + b"\xff" * (size % 256))
        assert client.receive(10) == bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)


def test_a_ping_is_answered_and_is_no_message(echo_port):
    with WebSocket(HOST, echo_port, "/ws") as client:
        client.send("ping")
        assert client.receive(10) == "pinged"
        client.send("still here")
        assert client.receive(10) == "still here"


def test_the_servers_close_tells_code_and_reason(echo_port):
    client = WebSocket(HOST, echo_port, "/ws")
    client.send("close")
    with pytest.raises(WebSocketClosed) as closed:
        client.receive(10)
    assert (closed.value.code, closed.value.reason) == (4001, "enough")


def test_another_page_is_refused(echo_port):
    with pytest.raises(WebSocketError, match="404"):
        WebSocket(HOST, echo_port, "/nothing-here")


def test_waiting_ends_in_time(echo_port):
    with WebSocket(HOST, echo_port, "/ws") as client, pytest.raises(TimeoutError):
        client.receive(0.05)


@contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that shakes hands correctly and then sends what ``talk`` sends."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096)
            key = next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nconnection: Upgrade\r\n"
            connection.sendall(head + b"sec-websocket-accept: " + accept + b"\r\n\r\n")
            talk(connection)

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """A server's frame: not masked."""
    size = len(payload)
    length = bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
    return bytes([final << 7 | opcode]) + length + payload


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=5), data=st.data())
def test_fragments_pings_and_tcp_pieces_do_not_change_a_message(parts, data):
    stream = b""
    for index, part in enumerate(parts):
        stream += frame(0x2 if index == 0 else 0x0, part, final=index == len(parts) - 1)
        if data.draw(st.booleans()):
            stream += frame(0x9, b"between fragments")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        connection.sendall(frame(0x8, struct.pack("!H", 1000)))
        connection.recv(65536)

    with raw_server(talk) as port:
        client = WebSocket(HOST, port)
        assert client.receive(10) == b"".join(parts)
        with pytest.raises(WebSocketClosed):
            client.receive(10)


def test_half_a_message_is_kept_over_a_timeout():
    go_on = threading.Event()

    def talk(connection: socket.socket) -> None:
        whole = frame(0x1, b"patience")
        connection.sendall(whole[:5])
        go_on.wait(10)
        connection.sendall(whole[5:])

    with raw_server(talk) as port:
        client = WebSocket(HOST, port)
        with pytest.raises(TimeoutError):
            client.receive(0.1)
        go_on.set()
        assert client.receive(10) == "patience"
        with pytest.raises(WebSocketClosed, match="1006"):
            client.receive(10)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (bytes([0x81, 0x81, 1, 2, 3, 4, 5]), "masked"),
        (bytes([0xC1, 0x00]), "reserved"),
        (bytes([0x83, 0x00]), "unknown opcode"),
        (frame(0x9, b"x" * 126), "control frame"),
        (frame(0x9, b"", final=False), "control frame"),
        (frame(0x0, b"x"), "out of order"),
        (frame(0x1, b"x", final=False) + frame(0x1, b"y"), "out of order"),
        (frame(0x1, b"\xff\xfe"), "UTF-8"),
        (bytes([0x82, 127]) + struct.pack("!Q", 1 << 40), "longer"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_refused(sent, complaint):
    def talk(connection: socket.socket) -> None:
        connection.sendall(sent)
        (opcode,) = connection.recv(1)
        assert opcode == 0x88, "the client must say goodbye with a close frame"

    with raw_server(talk) as port, pytest.raises(WebSocketError, match=complaint):
        WebSocket(HOST, port).receive(10)
