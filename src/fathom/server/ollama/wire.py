"""What Ollama's API says: lines of JSON, with errors as one string."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, json

from fathom.server.answer import Call, flaw_of
from fathom.server.envelope import Form
from fathom.server.state import ServedModel


class Failure(Struct, frozen=True):
    """An error."""

    error: str


OLLAMA = Form(
    error=lambda error: json.encode(Failure(str(error))),
    error_kind=Failure,
    frame=lambda body: body + b"\n",
    stream_type=b"application/x-ndjson",
    keep_alive=b"",  # every line is a record
)


def now() -> str:
    """The time as records carry it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def tool_call(index: int, call: Call) -> dict[str, Any]:
    """A whole call; this API knows no pieces of one."""
    function = {"index": index, "name": call.name, "arguments": call.as_object()}
    return {"id": call.id, "function": function, **flaw_of(call)}


def served_name(model: ServedModel, asked: str) -> str:
    """The served name, also where a client puts its default tag behind it.

    Raises: NotFoundError.
    """
    name = asked if asked in model.plan.served_names else asked.removesuffix(":latest")
    model.check_name(name)
    return name
