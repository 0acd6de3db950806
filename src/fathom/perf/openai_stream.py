"""A request of a workload as a streamed request of OpenAI's API, and what its events say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fathom.perf.drive import Answer
from fathom.perf.http_stream import BrokenStream, HttpClient, Response
from fathom.perf.workload import LoadRequest

Dialect = Literal["completions", "chat"]


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


class EventReader:
    """Takes the bytes of an event stream as they come.

    A piece counts when it carries text, reasoning or a tool call: an empty first chunk is no token.
    """

    def __init__(self, *, keeps_text: bool) -> None:
        self._rest = b""
        self._texts: list[str] | None = [] if keeps_text else None
        self.times_s: list[float] = []
        self.last_s = 0.0
        self.usage = _Usage()
        self.num_events = 0
        self.is_done = False
        self.has_finish = False
        self.error = ""

    @property
    def text(self) -> str:
        """What was answered, where it is kept."""
        return "".join(self._texts or ())

    def feed(self, piece: bytes, time_s: float) -> None:
        """A piece of the body. Raises: BrokenStream for an event that is not JSON."""
        self.last_s = time_s
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), time_s)

    def _event(self, raw: bytes, time_s: float) -> None:
        if raw == b"[DONE]":
            self.is_done = True
            return
        try:
            event = _DECODER.decode(raw)
        except msgspec.MsgspecError as error:
            raise BrokenStream(f"not an event of the API: {error}: {raw[:80]!r}") from error
        self.num_events += 1
        if event.error is not None:
            self.error = message_of(event.error)
        if event.usage is not None:
            self.usage = event.usage
        for choice in event.choices:
            if choice.finish_reason:
                self.has_finish = True
            if self._takes(choice):
                self.times_s.append(time_s)

    def _takes(self, choice: _Choice) -> bool:
        delta = choice.delta
        text = choice.text or ""
        if delta is not None:
            text = (delta.content or "") + (delta.reasoning_content or delta.reasoning or "")
        if self._texts is not None:
            self._texts.append(text)
        return bool(text) or (delta is not None and bool(delta.tool_calls))


def message_of(error: object) -> str:
    """The message in an error object of the API."""
    if isinstance(error, Mapping):
        inner = error.get("error", error)
        if isinstance(inner, Mapping):
            return str(inner.get("message", inner))
        return str(inner)
    return str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How requests are put: `options` go into every body as they stand. `timeout_s` is a request's
    time from its sending."""

    model: str
    dialect: Dialect
    path: str
    timeout_s: float
    options: Mapping[str, Any] = field(default_factory=dict)
    request_id_prefix: str = "bench-"
    keeps_text: bool = False

    def body(self, request: LoadRequest) -> bytes:
        """The JSON of one request. `options` win over what the workload says."""
        body: dict[str, Any] = {"model": self.model}
        if self.dialect == "chat":
            body["messages"] = [{"role": "user", "content": request.prompt}]
            body["max_completion_tokens"] = request.output_len
        else:
            body["prompt"] = request.prompt
            body["max_tokens"] = request.output_len
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode({**body, **self.options})


class OpenAISender:
    """Sends requests and tells how they went; every failure is an answer with a kind."""

    def __init__(self, client: HttpClient, asking: Asking, now_s: Callable[[], float]) -> None:
        self.client, self.asking, self._now_s = client, asking, now_s

    async def __call__(self, index: int, request: LoadRequest) -> Answer:
        """One request, to its end or its deadline."""
        asking = self.asking
        reader = EventReader(keeps_text=asking.keeps_text)
        headers = {"X-Request-Id": f"{asking.request_id_prefix}{index}"}
        kind = message = ""
        deadline = asyncio.timeout(asking.timeout_s)
        try:
            async with deadline:
                response = await self.client.post(
                    asking.path, asking.body(request), reader.feed, headers=headers
                )
            kind, message = _fault(response, reader)
        except BrokenStream as error:
            kind, message = "broken stream", str(error)
        except OSError as error:  # a deadline's TimeoutError is one
            kind, message = "no connection", str(error)
            if deadline.expired():
                kind, message = "timeout", f"no end after {asking.timeout_s:g} s"
        return Answer(
            end_s=self._now_s() if kind else reader.last_s,
            times_s=reader.times_s,
            prompt_tokens=reader.usage.prompt_tokens or request.prompt_len,
            output_tokens=reader.usage.completion_tokens or len(reader.times_s),
            text=reader.text,
            error_kind=kind,
            error=message,
        )


def _fault(response: Response, reader: EventReader) -> tuple[str, str]:
    """The kind and the message of what is wrong with an answer; empty where nothing is."""
    if response.status != 200:
        try:
            message = message_of(msgspec.json.decode(bytes(response.body)))
        except msgspec.MsgspecError:
            message = bytes(response.body[:200]).decode("utf-8", "replace")
        return f"HTTP {response.status}", message
    if reader.error:
        return "error in the stream", reader.error
    if not reader.is_done and not reader.has_finish:
        return "broken stream", f"it ended without [DONE] after {reader.num_events} events"
    if not reader.num_events:
        return "empty answer", "no event came"
    return "", ""
