"""Compares what becomes of odd requests and readers, in raw bytes, with what HTTP/1.1 (RFC 9112)
and a limit on everything ask for."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from tests.server.live_server import WAIT_S, LiveServer

CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
BODY = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
AS_CHUNKS = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)


def answer_of(raw: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    return b"".join(iter(lambda: raw.recv(65536), b""))


@pytest.mark.parametrize(("length", "body"), [(LENGTH, BODY), (CHUNKED, AS_CHUNKS)])
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_a_request_that_asks_for_http2_too_keeps_its_body(
    server: LiveServer, length: bytes, body: bytes, cut: int
) -> None:
    """Java's client asks so with every request; the body was taken for empty."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    with connect(server) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(CHAT + length + upgrade + b"\r\n" + body[:cut])
        raw.sendall(body[cut:])
        head, _, told = answer_of(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(told)["choices"][0]["message"]["content"] == "The answer is 42."


def test_trailers_have_a_limit(server: LiveServer) -> None:
    """They were kept like headers, as many as came: 200 MB in half a second."""
    many = b"X-A: 1\r\n" * 2**20
    with connect(server) as raw, pytest.raises(OSError, match=r"reset|Broken pipe"):
        raw.sendall(CHAT + CHUNKED + b"\r\n1\r\n{\r\n0\r\n" + many)


def test_a_client_that_leaves_takes_its_pipelined_requests_with_it(server: LiveServer) -> None:
    """Only the last one was told, and the first ran to its end for nobody."""
    server.engine.hold = asyncio.Event()  # never set
    with connect(server) as raw:
        raw.sendall((CHAT + LENGTH + b"\r\n" + BODY) * 2)
        server.until(lambda: len(server.engine.running) == 1)
    server.until(lambda: not server.engine.running and not server.state.num_active)


def test_an_answer_that_nobody_takes_ends_with_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader that stopped held its connection, and what was written to it, for ever."""
    monkeypatch.setattr("fathom.server.listen.WRITE_TIMEOUT_S", 0.3)
    with LiveServer() as server, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        server.until(lambda: bool(server.server.server_state.connections))
        server.until(lambda: not server.server.server_state.connections)
        server.until(lambda: not server.state.num_active)


def test_a_line_after_an_answer_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the time that an idle connection has, and the connection stayed for ever."""
    monkeypatch.setattr("fathom.server.run.IDLE_CONNECTION_S", 0.3)
    with LiveServer() as server, connect(server) as raw:
        raw.sendall(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        raw.sendall(b"\r\n")
        assert answer_of(raw) == b""
