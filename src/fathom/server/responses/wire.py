"""What /v1/responses says: the answer as an object, its events, and errors in mid-stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msgspec import json

from fathom.server.answer import Counts
from fathom.server.envelope import Form, sse


def _error_event(body: bytes) -> bytes:
    error = json.decode(body)["error"]
    told = {**error, "type": "error", "sequence_number": 0, "error": error}
    return b"event: error\n" + sse(json.encode(told))


RESPONSES = Form(frame=_error_event)


def usage(counts: Counts) -> dict[str, Any]:
    """Token counts."""
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.prompt + counts.completion,
    }


@dataclass(slots=True)
class OpenItem:
    """An item that grows, of kind reasoning, message or function_call. `number` parts calls,
    `scores` are logprobs of a message's tokens, `flaw` says what is wrong with arguments."""

    kind: str
    number: int
    id: str
    name: str = ""
    call_id: str = ""
    pieces: list[str] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    flaw: str = ""

    @property
    def text(self) -> str:
        """What it holds."""
        return "".join(self.pieces)

    @property
    def part(self) -> dict[str, Any]:
        """Its only part."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        scores = {"annotations": [], "logprobs": self.scores}
        return {"type": "output_text", "text": self.text, **scores}

    def told(self, status: str) -> dict[str, Any]:
        """The item; without content while it is in progress."""
        item: dict[str, Any] = {"type": self.kind, "id": self.id, "status": status}
        if self.kind == "function_call":
            call = {"call_id": self.call_id, "name": self.name, "arguments": self.text}
            return {**item, **call, **({"arguments_flaw": self.flaw} if self.flaw else {})}
        content = [self.part] if status != "in_progress" else []
        if self.kind == "reasoning":
            return {**item, "summary": [], "content": content}
        return {**item, "role": "assistant", "content": content}
