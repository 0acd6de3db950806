"""Requests to the upstream: deadlines, events, and every failure as an error of our own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from fathom.errors import (
    ContextLengthError,
    FathomError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UpstreamError,
    UpstreamTimeoutError,
)
from fathom.perf.http_stream import BrokenStream, HttpClient, Origin, Response

# An event of an answer that is longer than this is no event.
MAX_EVENT_BYTES = 8 * 1024 * 1024
# For what follows an answer's last event, so that its connection can be kept.
END_TIMEOUT_S = 1.0
MAX_WHOLE_BYTES = 8 * 1024 * 1024
# An answer in one piece, which has the scores of a prompt of a hundred thousand tokens.
MAX_SCORED_BYTES = 64 * 1024 * 1024
# In the words of OpenAI's and DeepSeek's APIs, vLLM 0.32, SGLang 0.5.23 and llama.cpp's server.
_TOO_LONG = re.compile(
    r"context (length|size)|maximum model length|exceeds the maximum allowed length"
)
# What OpenAI's API and ours call by the same name, and what only a fathom says.
_CODES = frozenset(
    (
        *("invalid_type", "invalid_value", "missing_required_parameter", "unknown_parameter"),
        *("unsupported_content", "unsupported_parameter", "unsupported_value"),
        *("limit_exceeded", "unsupported_schema"),
        *("schema_memory_limit", "schema_state_limit", "schema_time_limit"),
    )
)
_log = logging.getLogger(__name__)
_KEY_FIX = "put the upstream's key into the variable that --api-key-env names"


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


class _Told(NamedTuple):
    """An upstream's error: the text, the field that it names, and its kind."""

    message: str
    param: str | None = None
    code: str | int | None = None

    @classmethod
    def of(cls, error: object) -> _Told:
        """What an error object says, or text in its place."""
        inner = error.get("error", error) if isinstance(error, dict) else error
        if not isinstance(inner, dict):
            return cls(str(inner))
        param, code = inner.get("param"), inner.get("code")
        return cls(
            str(inner.get("message", inner.get("detail", inner))),
            param if isinstance(param, str) else None,
            code if isinstance(code, str | int) else None,
        )


def error_of(response: Response) -> FathomError:
    """What a status other than 200 means to a client of the proxy.

    A 400 is the client's own, passed on; a wrong key is the proxy's, which its client cannot mend.
    """
    body = bytes(response.body)
    try:
        told = _Told.of(msgspec.json.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        told = _Told(body[:500].decode("utf-8", "replace"))
    return _error(response.status, told, response.retry_after)


def event_error(error: object) -> FathomError | BrokenStream:
    """What an error within a stream means. SGLang checks forms after it has begun to answer, and
    gives the status that would have been as `code`."""
    told = _Told.of(error)
    if isinstance(told.code, int) and (400 <= told.code < 500 or told.code == 503):
        return _error(told.code, told, "")
    return BrokenStream(told.message)


def _error(status: int, told: _Told, retry_after: str) -> FathomError:
    found = f"{status}: {told.message}"[:2000]
    if status == 429:
        return OverloadedError(
            "the upstream takes no more", retry_after_s=_seconds(retry_after), found=found
        )
    if status in (401, 403):
        return UpstreamError("the upstream refused the proxy's key", found=found, fix=_KEY_FIX)
    if status in (400, 413, 422):
        return _refusal(told, found)
    if status == 503:
        return UnavailableError("the upstream is not available", found=found)
    if status == 504:
        return UpstreamTimeoutError("the upstream did not answer in time", found=found)
    return UpstreamError("the upstream failed", found=found)


def _refusal(told: _Told, found: str) -> RequestError:
    if told.code == ContextLengthError.code or _TOO_LONG.search(told.message):
        # In Anthropic's words, as where the prompt is counted here.
        what = "prompt is too long for the upstream, with the answer that may follow"
        return ContextLengthError(what, param=told.param, found=found)
    code = told.code if isinstance(told.code, str) and told.code in _CODES else None
    return RequestError(
        "the upstream refused the request", param=told.param, code=code, found=found
    )


def _seconds(header: str) -> int:
    """A Retry-After in seconds; one that is a date, or not there, is a second."""
    return min(max(int(header), 1), 86400) if header.isdecimal() and len(header) < 10 else 1
