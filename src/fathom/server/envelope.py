"""Errors as HTTP, and the forms in which dialects write errors and streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct, json

from fathom.errors import (
    AuthenticationError,
    FathomError,
    MethodError,
    OverloadedError,
    RequestError,
    UnavailableError,
)

_UNAVAILABLE_RETRY_S = 2


class ErrorBody(Struct, frozen=True):
    """The inside of the envelope. `param` names the field at fault, if one is."""

    message: str
    type: str
    param: str | None
    code: str


class Envelope(Struct, frozen=True):
    """`{"error": {...}}`."""

    error: ErrorBody


def envelope(error: FathomError) -> bytes:
    """The JSON of an error, as OpenAI writes it."""
    param = error.param if isinstance(error, RequestError) else None
    body = ErrorBody(message=str(error), type=error.error_type, param=param, code=error.code)
    return json.encode(Envelope(body))


def sse(body: bytes) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + body + b"\n\n"


def event(name: str, /, **fields: Any) -> bytes:
    """A server-sent event with its name, which is the object's type too."""
    return b"event: %s\n" % name.encode() + sse(json.encode({"type": name, **fields}))


@dataclass(frozen=True, slots=True)
class Form:
    """How a dialect writes what no handler writes: errors, and the ends and gaps of streams.

    `frame` makes an error a piece of a stream. `keep_alive` fills silence; empty: nothing may.
    `error_kind` describes what `error` writes.
    """

    error: Callable[[FathomError], bytes] = envelope
    error_kind: type[Struct] = Envelope
    frame: Callable[[bytes], bytes] = sse
    stream_type: bytes = b"text/event-stream; charset=utf-8"
    keep_alive: bytes = b": keep-alive\n\n"


OPENAI = Form()


def error_headers(error: FathomError) -> list[tuple[bytes, bytes]]:
    """The headers that an error's status calls for."""
    if isinstance(error, AuthenticationError):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, MethodError):
        return [(b"allow", error.wanted.encode())]
    if isinstance(error, OverloadedError):
        return [(b"retry-after", b"%d" % error.retry_after_s)]
    if isinstance(error, UnavailableError):
        return [(b"retry-after", b"%d" % _UNAVAILABLE_RETRY_S), (b"connection", b"close")]
    return []
