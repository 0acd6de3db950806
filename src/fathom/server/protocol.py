"""HTTP/1.1 by httptools, with what uvicorn lacks: limits of size and time for headers, bodies of
requests that ask for another protocol too, and word of a client that left, to every request."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fathom.errors import HeadersTooLargeError, RequestError
from fathom.server.envelope import envelope
from fathom.server.limits import MAX_HEAD_BYTES

HEAD_TIMEOUT_S = 30.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._cycles: deque[RequestResponseCycle] = deque()  # pipelined ones behind what runs
        self._bodiless_bytes = 0
        self._is_in_head = True
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected: its first head is awaited."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        if self._deadline is not None:
            self._deadline.cancel()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came. Those without a piece of a body are counted; without that a head, or the
        trailers behind a body, could grow for ever."""
        self._bodiless_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._bodiless_bytes > MAX_HEAD_BYTES:
            error = HeadersTooLargeError(
                "the headers are too large", wanted=f"at most {MAX_HEAD_BYTES} bytes"
            )
            self._hang_up(error)
        elif self._is_in_head:
            if self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow)
        elif self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # What came is of no request: the connection is as idle as it was.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._bodiless_bytes = 0

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._is_in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().on_headers_complete()
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of a body came."""
        self._bodiless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole; httptools thinks so too early of one that asks for an upgrade."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_upgrade(self, rest: bytes) -> None:
        """The request whose head is over asks for another protocol, as every one of Java's client
        does. That may be passed over, but httptools then reads no body: `rest` and what follows go
        to a parser of that alone, and the connection ends with the answer."""
        self.cycle.keep_alive = False
        lengths = (b"content-length", b"transfer-encoding")
        head = b"".join(b"%s: %s\r\n" % one for one in self.headers if one[0] in lengths)
        sink = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        self.parser = httptools.HttpRequestParser(sink)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n" + rest)

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._hang_up(RequestError(msg.rstrip("."), code="invalid_http"))

    def _end_slow(self) -> None:
        if self._is_in_head and self.transport is not None:
            self.transport.close()

    def _hang_up(self, error: RequestError) -> None:
        body = envelope(error)
        head = (
            f"HTTP/1.1 {error.http_status} Refused\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Parser(httptools.HttpRequestParser):
    """Tells the connection of upgrades, where uvicorn drops the request's body."""

    def __init__(self, connection: BoundedProtocol) -> None:
        super().__init__(connection)
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        """Parse what came. Raises: httptools.HttpParserError."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._connection.on_upgrade(data[upgrade.args[0] :])
