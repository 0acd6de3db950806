"""Requests to the upstream: deadlines, and events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from fathom.engine.upstream.failures import error_of
from fathom.errors import FathomError, UnavailableError, UpstreamError, UpstreamTimeoutError
from fathom.perf.http_stream import BrokenStream, HttpClient, Origin

# An event of an answer that is longer than this is no event.
MAX_EVENT_BYTES = 8 * 1024 * 1024
# For what follows an answer's last event, so that its connection can be kept.
END_TIMEOUT_S = 1.0
MAX_WHOLE_BYTES = 8 * 1024 * 1024
# An answer in one piece, which has the scores of a prompt of a hundred thousand tokens.
MAX_SCORED_BYTES = 64 * 1024 * 1024
_log = logging.getLogger(__name__)


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _AnswerDetails(Struct):
    reasoning_tokens: int | None = None


class Usage(Struct):
    """What an answer cost, as OpenAI's API and its likes say it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _AnswerDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's
    reasoning_tokens: int | None = None  # SGLang's

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that a cache had."""
        details = self.prompt_tokens_details
        return (details and details.cached_tokens) or self.prompt_cache_hit_tokens or 0

    @property
    def num_reasoning(self) -> int:
        """Tokens of the answer that were reasoning."""
        details = self.completion_tokens_details
        return (details and details.reasoning_tokens) or self.reasoning_tokens or 0


class EventStream:
    """The events of one answer, out of bytes as they come. `on_event` may raise BrokenStream."""

    def __init__(self, on_event: Callable[[bytes], None]) -> None:
        self._on_event = on_event
        self._line = bytearray()  # the last one, as far as it came
        self.heard_s = time.monotonic()
        """When the last event came: a comment that fills silence is none."""
        self.is_done = False

    def feed(self, piece: bytes, _: float) -> None:
        """A piece of the body. Raises: BrokenStream."""
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line, self._line = bytes(self._line + end), bytearray()
            if line.startswith(b"data:") and not self.is_done:
                self.heard_s = time.monotonic()
                event = line[5:].strip()
                if event == b"[DONE]":
                    self.is_done = True
                else:
                    self._on_event(event)
        self._line += rest
        if len(self._line) > MAX_EVENT_BYTES:
            raise BrokenStream("an event without an end")

    def end(self) -> None:
        """The body is over. Raises: BrokenStream."""


class WholeAnswer(EventStream):
    """An answer that is not streamed: one event, when it is over."""

    def __init__(self, on_event: Callable[[bytes], None]) -> None:
        super().__init__(on_event)
        self._pieces: list[bytes] = []
        self._num_left = MAX_SCORED_BYTES

    def feed(self, piece: bytes, _: float) -> None:
        """A piece of the body. Raises: BrokenStream."""
        self._pieces.append(piece)
        self._num_left -= len(piece)
        if self._num_left < 0:
            raise BrokenStream("the answer is too long")

    def end(self) -> None:
        """The body is over. Raises: BrokenStream."""
        self._on_event(b"".join(self._pieces))


class Upstream:
    """One upstream server. Every call has deadlines; cancelling one hangs up."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        connect_timeout_s: float,
        silence_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        origin = Origin.of(url, "--upstream")
        self.origin = Origin(
            origin.host, origin.port, origin.is_tls, origin.prefix.removesuffix("/v1")
        )
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = HttpClient(
            self.origin, headers, time.monotonic, connect_timeout_s=connect_timeout_s
        )
        self._silence_s, self._whole_s = silence_timeout_s, request_timeout_s

    async def get_json(self, path: str) -> Any:
        """The JSON at `path`. Raises: FathomError."""
        pieces: list[bytes] = []

        def keep(piece: bytes, _: float) -> None:
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_WHOLE_BYTES:
                raise BrokenStream("the answer is too long")

        try:
            async with asyncio.timeout(min(60.0, self._silence_s)):
                response = await self._http.get(path, keep)
        except (OSError, BrokenStream) as error:
            raise self.broken(error) from error
        if response.status != 200:
            raise error_of(response)
        try:
            return msgspec.json.decode(b"".join(pieces))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UpstreamError(f"the upstream's {path} is not JSON", found=str(error)) from error

    async def settings(self, path: str) -> dict[str, Any]:
        """The object at `path`; an empty one where a router does not pass it on."""
        try:
            told = await self.get_json(path)
        except FathomError as error:
            _log.warning("the upstream does not tell its settings error=%s", error)
            told = None
        return told if isinstance(told, dict) else {}

    async def stream(self, path: str, body: dict[str, Any], events: EventStream) -> None:
        """Ask, and feed `events` until the answer is over. Raises: FathomError."""
        raw = msgspec.json.encode(body)
        end_s = time.monotonic() + self._whole_s
        silence_s = self._silence_s if body["stream"] else self._whole_s
        events.heard_s = time.monotonic()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def feed(piece: bytes, now_s: float) -> None:
            events.feed(piece, now_s)
            if events.is_done and not done.done():
                done.set_result(None)

        asking = asyncio.ensure_future(self._http.post(path, raw, feed))
        try:
            while not (asking.done() or done.done()):
                due_s = min(end_s, events.heard_s + silence_s)
                left_s = due_s - time.monotonic()
                if left_s <= 0:
                    limit_s = self._whole_s if due_s == end_s else silence_s
                    raise UpstreamTimeoutError(
                        "the upstream did not answer in time", wanted=f"within {limit_s:g} s"
                    )
                await asyncio.wait(
                    (asking, done), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
            if events.is_done:  # how the response ends after that is nobody's business
                with contextlib.suppress(OSError, BrokenStream):
                    await asyncio.wait_for(asking, END_TIMEOUT_S)
                return
            response = asking.result()
        except (OSError, BrokenStream) as error:
            raise self.broken(error) from error
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait((asking,))
        if response.status != 200:
            raise error_of(response)

    def broken(self, error: Exception) -> FathomError:
        """What a connection that failed means to a client of the proxy."""
        if isinstance(error, BrokenStream):
            return UpstreamError("the upstream broke off its answer", found=str(error))
        return UnavailableError(
            "the upstream cannot be reached",
            found=str(error) or type(error).__name__,
            wanted=f"a server at {self.origin.url}",
        )

    async def close(self) -> None:
        """Hang up everywhere."""
        await self._http.close()
