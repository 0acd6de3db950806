"""What an upstream says where it fails, as errors of our own."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from fathom.errors import (
    ContextLengthError,
    FathomError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UpstreamError,
    UpstreamTimeoutError,
)
from fathom.perf.http_stream import BrokenStream, Response

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
        *("schema_depth_limit", "schema_memory_limit", "schema_state_limit", "schema_time_limit"),
    )
)
_KEY_FIX = "put the upstream's key into the variable that --api-key-env names"


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
