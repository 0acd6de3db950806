"""HTTP/1.1 by httptools, with limits that uvicorn lacks: the size and the time of headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fathom.errors import HeadersTooLargeError, RequestError
from fathom.server.envelope import envelope
from fathom.server.limits import MAX_HEAD_BYTES

HEAD_TIMEOUT_S = 30.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
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
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came. Those of a head are counted; without that a head could grow for ever."""
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            if self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow)
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                error = HeadersTooLargeError(
                    "the headers are too large", wanted=f"at most {MAX_HEAD_BYTES} bytes"
                )
                self._hang_up(error)

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._is_in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().on_headers_complete()

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
