"""A small HTTP/1.1 client for many streams at once: asyncio's protocols over httptools' parser.

Bytes get their time when they reach this process and go to whoever asked, in one call; a general
client's queues and wake-ups for each piece of a stream would be what is measured.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from fathom.errors import ConfigError, FathomError

# What is kept of the body of an error.
MAX_ERROR_BYTES = 64 * 1024

Sink = Callable[[bytes, float], None]
"""Takes a piece of a body and the time at which it came. May raise: BrokenStream, FathomError."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is; `prefix` is what stands before every path."""

    host: str
    port: int
    is_tls: bool
    prefix: str = ""

    @classmethod
    def of(cls, url: str, name: str = "--base-url") -> Origin:
        """The origin of a URL; `name` is its flag, for the error. Raises: ConfigError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(name, found=url, wanted="a URL such as http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=port or (443 if is_tls else 80),
            is_tls=is_tls,
            prefix=parts.path.rstrip("/"),
        )

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As a URL."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.prefix}"


class BrokenStream(Exception):
    """The connection ended before the response did, or what came was no HTTP."""


class _Unused(BrokenStream):
    """A kept connection that the server had closed before it saw the request."""


@dataclass(slots=True)
class Response:
    """A response while it comes. `body` is kept where the status is not 200, as far as
    MAX_ERROR_BYTES; `retry_after` is the header's value."""

    sink: Sink
    done: asyncio.Future[None]
    status: int = 0
    retry_after: str = ""
    body: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._time_s = 0.0
        self._response: Response | None = None
        self._has_length = self._has_answer = False
        self.is_open = False
        self.is_reused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Called by the loop: the time is taken first."""
        self._time_s = self._now_s()
        self._has_answer = True
        if self._response is None:
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(BrokenStream(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.is_open = False
        response = self._response
        if response is None:
            return
        if response.status and not self._has_length and exc is None:
            self._finish()  # a body without a length ends with its connection
        elif self.is_reused and not self._has_answer:
            self._fail(_Unused("the server had closed the connection"))
        else:
            self._fail(BrokenStream(str(exc) if exc else "the server hung up in mid answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif name.lower() == b"retry-after" and self._response is not None:
            self._response.retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._response is not None:
            self._response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        response = self._response
        if response is None:
            return
        if response.status != 200:
            response.body += body[: MAX_ERROR_BYTES - len(response.body)]
            return
        try:
            response.sink(body, self._time_s)
        except (BrokenStream, FathomError) as error:
            self._fail(error)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._parser.get_status_code() < 200:
            return  # such as 103 Early Hints: the response is still to come
        if not self._parser.should_keep_alive():
            self.close()
        self._finish()

    def ask(self, raw: bytes, sink: Sink) -> Response:
        """Send a request; `done` of the response says when it is over."""
        self._parser = httptools.HttpResponseParser(self)
        self._has_length = self._has_answer = False
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._response = Response(sink, done)
        self._transport.write(raw)
        return self._response

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        self._transport.abort()

    def _finish(self) -> None:
        response, self._response = self._response, None
        if response is not None and not response.done.done():
            response.done.set_result(None)

    def _fail(self, error: Exception) -> None:
        self.close()
        response, self._response = self._response, None
        if response is not None and not response.done.done():
            response.done.set_exception(error)


class HttpClient:
    """Requests to one origin over kept connections, as many as there are requests at once."""

    def __init__(
        self,
        origin: Origin,
        headers: Mapping[str, str],
        now_s: Callable[[], float],
        *,
        verify_tls: bool = True,
        connect_timeout_s: float | None = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._origin, self._now_s = origin, now_s
        self._idle: list[Connection] = []
        self._tls = client_tls(verify_tls) if origin.is_tls else None
        fixed = {"Host": origin.authority, "Accept": "*/*", **headers}
        self._head = _lines(fixed)

    async def post(
        self, path: str, body: bytes, sink: Sink, *, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The response when it is over. Cancelling hangs up.

        Raises: OSError where there is no connection; BrokenStream.
        """
        more = _lines(headers or {})
        head = (
            f"POST {self._origin.prefix}{path} HTTP/1.1\r\n{self._head}{more}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._ask(head.encode("latin-1") + body, sink)

    async def get(self, path: str, sink: Sink) -> Response:
        """The same for a GET."""
        head = f"GET {self._origin.prefix}{path} HTTP/1.1\r\n{self._head}\r\n"
        return await self._ask(head.encode("latin-1"), sink)

    async def _ask(self, raw: bytes, sink: Sink) -> Response:
        while True:
            connection = await self._connection()
            response = connection.ask(raw, sink)
            try:
                await response.done
            except _Unused:
                continue  # each kept connection is tried once; a fresh one never ends so
            except BaseException:
                connection.close()
                raise
            if connection.is_open:
                connection.is_reused = True
                self._idle.append(connection)
            return response

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        origin = self._origin
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._now_s),
                origin.host,
                origin.port,
                ssl=self._tls,
                server_hostname=origin.host if origin.is_tls else None,
            )
        return connection

    async def close(self) -> None:
        """Hang up everywhere. To be called before its loop ends: uvloop waits for open sockets."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close in the next turn


def client_tls(verify: bool) -> ssl.SSLContext:
    """What a client of TLS checks: the system's authorities and the name, or nothing."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _lines(headers: Mapping[str, str]) -> str:
    """Header lines. Raises: ConfigError for a name or value that would be more than its line."""
    for name, value in headers.items():
        if any(character in name + value for character in "\r\n\0"):
            raise ConfigError(f"--header {name!r}", found=repr(value), wanted="one line")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
