"""A WebSocket client (RFC 6455) of the standard library alone: what ComfyUI's progress messages need."""

import base64
import hashlib
import os
import socket
import ssl
import struct
import time
from contextlib import ExitStack, suppress

_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_MAX_MESSAGE = 1 << 28


class WebSocketError(ConnectionError):
    """The other side broke the protocol or refused the handshake."""


class WebSocketClosed(ConnectionError):
    """The other side closed the connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"WebSocket closed by the server: code {code}, reason {reason!r}")
        self.code = code
        self.reason = reason


class WebSocket:
    """One connection; not for several threads at once."""

    def __init__(self, host: str, port: int, path: str = "/", timeout: float = 30.0, is_secure: bool = False) -> None:
        """Connect and shake hands (RFC 6455 section 4.1); ``timeout`` in seconds, ``is_secure`` for wss."""
        self._socket = socket.create_connection((host, port), timeout)
        self._buffer = bytearray()
        self._fragments: list[bytes] = []
        self._fragments_opcode: int | None = None
        self._close_sent = False
        with ExitStack() as on_failure:
            on_failure.callback(lambda: self._socket.close())
            if is_secure:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=host)
            self._shake_hands(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", path, time.monotonic() + timeout)
            on_failure.pop_all()

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: str | bytes) -> None:
        """Send one message: text for str, binary for bytes."""
        if isinstance(message, str):
            self._send_frame(_TEXT, message.encode())
        else:
            self._send_frame(_BINARY, message)

    def receive(self, timeout: float | None = None) -> str | bytes:
        """The next whole message; pings are answered on the way.

        Raises:
            TimeoutError: none came within ``timeout`` seconds; what came of it is kept for the next call.
            WebSocketClosed: the server closed the connection.
            WebSocketError: the server broke the protocol.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            final, opcode, payload = self._read_frame(deadline)
            if opcode == _PING:
                self._reply(_PONG, payload)
            elif opcode == _CLOSE:
                self._answer_close(payload)
            elif opcode in (_TEXT, _BINARY, _CONTINUATION):
                self._collect(opcode, payload)
                if final:
                    return self._take_message()
            elif opcode != _PONG:
                raise self._fail(1002, f"unknown opcode {opcode}")

    def close(self, code: int = 1000) -> None:
        """Send a close frame and wait shortly for the answer."""
        with suppress(OSError):  # the connection may be gone, which is what closing is for
            if not self._close_sent:
                self._send_frame(_CLOSE, struct.pack("!H", code))
                self._close_sent = True
                deadline = time.monotonic() + 1.0
                while self._read_frame(deadline)[1] != _CLOSE:
                    pass
        self._socket.close()

    def _shake_hands(self, host: str, path: str, deadline: float) -> None:
        key = base64.b64encode(os.urandom(16))
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill(deadline)
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        expected = base64.b64encode(hashlib.sha1(key + _ACCEPT_GUID).digest()).decode()
        if status.split()[1:2] != ["101"]:
            raise WebSocketError(f"expected '101 Switching Protocols' from {host}{path}, got {status!r}")
        if headers.get("upgrade", "").lower() != "websocket" or headers.get("sec-websocket-accept") != expected:
            raise WebSocketError(f"{host}{path} does not answer the WebSocket handshake as RFC 6455 asks")

    def _fill(self, deadline: float | None) -> None:
        """Read what has come; raises TimeoutError after ``deadline`` with the buffer untouched."""
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError("no WebSocket message in time")
        self._socket.settimeout(remaining)
        data = self._socket.recv(1 << 16)
        if not data:
            raise WebSocketClosed(1006, "connection lost without a close frame")
        self._buffer += data

    def _read_frame(self, deadline: float | None) -> tuple[bool, int, bytes]:
        """One frame (section 5.2) as (final, opcode, payload), consumed only when all of it is there."""

        def need(size: int) -> None:
            while len(self._buffer) < size:
                self._fill(deadline)

        need(2)
        first, second = self._buffer[:2]
        final, opcode, size, start = bool(first & 0x80), first & 0x0F, second & 0x7F, 2
        if first & 0x70:
            raise self._fail(1002, "reserved bits are set, but no extension was agreed")
        if second & 0x80:
            raise self._fail(1002, "a server's frame must not be masked")
        if opcode >= _CLOSE and (size > 125 or not final):
            raise self._fail(1002, "a control frame must be whole and no longer than 125 bytes")
        if size >= 126:
            format_ = "!H" if size == 126 else "!Q"
            start += struct.calcsize(format_)
            need(start)
            (size,) = struct.unpack(format_, self._buffer[2:start])
        if size + sum(map(len, self._fragments)) > _MAX_MESSAGE:
            raise self._fail(1009, f"a message is longer than {_MAX_MESSAGE} bytes")
        need(start + size)
        payload = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return final, opcode, payload

    def _collect(self, opcode: int, payload: bytes) -> None:
        if (opcode == _CONTINUATION) != (self._fragments_opcode is not None):
            raise self._fail(1002, "fragments of a message came out of order")
        if opcode != _CONTINUATION:
            self._fragments_opcode = opcode
        self._fragments.append(payload)

    def _take_message(self) -> str | bytes:
        data, opcode = b"".join(self._fragments), self._fragments_opcode
        self._fragments, self._fragments_opcode = [], None
        if opcode == _BINARY:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._fail(1007, "a text message is not UTF-8") from error

    def _answer_close(self, payload: bytes) -> None:
        code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
        if not self._close_sent:
            self._close_sent = True
            self._reply(_CLOSE, payload[:2])
        self._socket.close()
        raise WebSocketClosed(code, payload[2:].decode(errors="replace"))

    def _fail(self, code: int, reason: str) -> WebSocketError:
        """Close the connection with ``code`` (section 7.1.7); returns the error to raise."""
        if not self._close_sent:
            self._close_sent = True
            self._reply(_CLOSE, struct.pack("!H", code))
        self._socket.close()
        return WebSocketError(reason)

    def _reply(self, opcode: int, payload: bytes) -> None:
        """Send a control frame; that the server has gone is left for the next reading to find out."""
        with suppress(OSError):
            self._send_frame(opcode, payload)

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        """A final frame, masked with a fresh key as a client's must be (section 5.3)."""
        size = len(payload)
        if size < 126:
            header = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            header = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            header = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        key = os.urandom(4)
        pad = (key * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
        self._socket.settimeout(30.0)
        self._socket.sendall(header + key + masked)
