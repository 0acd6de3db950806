"""What Anthropic's API says: messages, their events, counts and errors."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, json

from fathom.errors import FathomError, RequestError
from fathom.server.answer import Choice, Counts, flaw_of
from fathom.server.envelope import Form, event

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# Says nothing, but has to be there: clients send earlier thinking back where it has a signature,
# and else leave it out or, worse, send it back as text that the assistant is to have said.
SIGNATURE = "fathom"


class FailureBody(Struct, frozen=True, omit_defaults=True):
    """The inside of an error. `param` names the field at fault, if one is."""

    type: str
    message: str
    code: str
    param: str | None = None


class Failure(Struct, frozen=True):
    """An error."""

    error: FailureBody
    type: str = "error"
    request_id: str | None = None


def _error(error: FathomError) -> bytes:
    kind = "api_error" if error.http_status >= 500 else "invalid_request_error"
    told = FailureBody(
        type=_ERROR_TYPES.get(error.http_status, kind),
        message=str(error),
        code=error.code,
        param=error.param if isinstance(error, RequestError) else None,
    )
    return json.encode(Failure(told))


ANTHROPIC = Form(
    error=_error,
    error_kind=Failure,
    frame=lambda body: b"event: error\ndata: " + body + b"\n\n",
    keep_alive=event("ping"),
)


def usage(counts: Counts) -> dict[str, Any]:
    """Token counts. The three kinds of input add up to the prompt; nothing is written to the cache
    for a price of its own."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts.completion,
        "output_tokens_details": {"thinking_tokens": counts.reasoning},
    }


def content(choice: Choice, *, shows_thinking: bool) -> list[dict[str, Any]]:
    """The blocks of a whole answer."""
    blocks: list[dict[str, Any]] = []
    if choice.reasoning:
        text = choice.reasoning if shows_thinking else ""
        blocks.append({"type": "thinking", "thinking": text, "signature": SIGNATURE})
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    for call in choice.tool_calls:
        block = {"type": "tool_use", "id": call.id, "name": call.name}
        blocks.append({**block, "input": call.as_object(), **flaw_of(call)})
    return blocks
