"""One HTTP request and its response over ASGI: bounded bodies, streams, clients that leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any

from msgspec import json

from fathom.errors import BodyTooLargeError, FathomError, MediaTypeError, RequestTimeoutError
from fathom.server.envelope import OPENAI, Form, error_headers

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

BODY_TIMEOUT_S = 60.0
# A client that takes nothing for so long is as good as gone.
WRITE_TIMEOUT_S = 120.0
# After a refusal the rest of a body is thrown away for so long: closing at once would reset the
# connection, and the client, still writing, would never read why.
LINGER_S = 5.0
JSON_HEADER: Header = (b"content-type", b"application/json")


class Disconnected(Exception):
    """The client is gone; there is nobody to answer."""


class Exchange:
    """A request that is being answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.form: Form = OPENAI
        """How the route's dialect writes errors and streams."""
        self.tenant = ""
        """Who asks, where keys tell: their prefix caches are kept apart."""
        self.has_started = False
        """Whether the response's status is out."""
        self.is_body_read = not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        )
        """Whether the client has nothing more to send."""
        self._last_write_s = time.monotonic()
        self._writing_since_s: float | None = None

    def header(self, name: bytes) -> str:
        """The value of a header, empty where there is none; bytes outside ASCII as Latin-1."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value).decode("latin-1")
        return ""

    async def read_json_body(self, limit_bytes: int) -> bytes:
        """The body of a JSON request.

        Raises: MediaTypeError, BodyTooLargeError (before reading it all), RequestTimeoutError,
        Disconnected.
        """
        media_type = self.header(b"content-type").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise MediaTypeError(
                "the body is not declared as JSON",
                found=repr(media_type[:100]),
                wanted="the header Content-Type: application/json",
            )
        declared = self.header(b"content-length")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > limit_bytes):
            raise self._too_large(f"{declared[:18]} bytes", limit_bytes)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read_body(limit_bytes)
        except TimeoutError:
            raise RequestTimeoutError(
                "the body did not arrive in time", wanted=f"all of it in {BODY_TIMEOUT_S:g} s"
            ) from None

    async def _read_body(self, limit_bytes: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            self.is_body_read = not message.get("more_body", False)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit_bytes:
                raise self._too_large(f"over {limit_bytes} bytes", limit_bytes)
            chunks.append(chunk)
            if self.is_body_read:
                return b"".join(chunks)

    @staticmethod
    def _too_large(found: str, limit_bytes: int) -> BodyTooLargeError:
        return BodyTooLargeError(
            "the body is too large",
            found=found,
            wanted=f"at most {limit_bytes} bytes",
            fix="send less, or start the server with a larger --max-body-bytes",
        )

    async def respond(
        self, status: int, body: bytes, headers: Iterable[Header] = (JSON_HEADER,)
    ) -> None:
        """Send a whole response."""
        await self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def give(self, told: Any) -> None:
        """Send a whole answer in JSON."""
        await self.respond(200, json.encode(told))

    async def fail(self, error: FathomError) -> None:
        """Answer with an error; in a stream, with an event after which it just ends."""
        body = self.form.error(error)
        if self.has_started:
            await self.write(self.form.frame(body), is_last=True)
        elif self.is_body_read:
            await self.respond(error.http_status, body, [JSON_HEADER, *error_headers(error)])
        else:
            await self._refuse(error, body)

    async def _refuse(self, error: FathomError, body: bytes) -> None:
        """Answer while the client is still sending; throw that away for a while, and hang up."""
        size = (b"content-length", b"%d" % len(body))
        close = (b"connection", b"close")
        told = [header for header in error_headers(error) if header != close]
        await self._start(error.http_status, [*told, JSON_HEADER, size, close])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass  # the rest is the client's loss
        await self._send({"type": "http.response.body", "body": b""})

    async def start_stream(self) -> None:
        """Open a stream, unless it is open."""
        if self.has_started:
            return
        await self._start(
            200,
            [
                (b"content-type", self.form.stream_type),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ],
        )

    async def write(self, chunk: bytes, *, is_last: bool = False) -> None:
        """Send a piece of a stream; waits while the client is slow."""
        now_s = time.monotonic()
        self._last_write_s = self._writing_since_s = now_s
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not is_last})
        self._writing_since_s = None

    async def while_connected(
        self, work: Coroutine[Any, Any, None], *, keep_alive_s: float | None = None
    ) -> None:
        """Do `work`, and cancel it as soon as the client is gone. The body has been read before.

        `keep_alive_s`: the silence after which a started stream gets a sign of life.
        Raises: Disconnected; whatever `work` raises.
        """
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self._watch(keep_alive_s))
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if task.cancelled():
                raise Disconnected
            task.result()
        finally:
            # Also where this task itself is cancelled: nothing of the request lives on.
            task.cancel()
            watch.cancel()
            await asyncio.wait((task, watch))
            if not watch.cancelled():
                watch.exception()

    async def _watch(self, keep_alive_s: float | None) -> None:
        """Returns when the client is gone, or takes nothing any more."""
        pause_s = keep_alive_s or WRITE_TIMEOUT_S
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    return
            except TimeoutError:
                pass
            now_s = time.monotonic()
            pause_s = keep_alive_s or WRITE_TIMEOUT_S
            if self._writing_since_s is not None:
                if now_s - self._writing_since_s > WRITE_TIMEOUT_S:
                    return
            elif keep_alive_s is not None and self.has_started and self.form.keep_alive:
                silence_s = now_s - self._last_write_s
                if silence_s >= keep_alive_s:
                    await self.write(self.form.keep_alive)
                else:
                    pause_s = keep_alive_s - silence_s

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.has_started = True
        headers.append((b"x-content-type-options", b"nosniff"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
