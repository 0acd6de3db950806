"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from msgspec import json

from fathom.server.answer import first_call_only, stray
from fathom.server.anthropic.refused import OF_MESSAGES
from fathom.server.anthropic.schema import CountRequest, MessagesRequest
from fathom.server.anthropic.translate import (
    form_of,
    has_billing_line,
    messages_of,
    tell_of_unheeded,
    thinking_of,
    tool_choice_of,
    tools_of,
)
from fathom.server.anthropic.wire import content, event, usage
from fathom.server.conversation import Chat
from fathom.server.exchange import Exchange
from fathom.server.generation import News
from fathom.server.job import Ask, Events, Job, answer, collect
from fathom.server.state import ServerState
from fathom.text.delta import Delta, ToolCallDelta

_NAMES = {"stop": "stop_sequences"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(Job[MessagesRequest]):
    """A conversation. `is_cut`: the context leaves less room than was asked for."""

    thinking: dict[str, Any]
    is_cut: bool

    @property
    def shows_thinking(self) -> bool:
        """Whether the text of reasoning is wanted."""
        asked = self.request.thinking
        return asked is None or asked.display != "omitted"

    def wanted(self, delta: Delta) -> Delta:
        """The delta with one tool call at most, where no more are wanted."""
        choice = self.request.tool_choice
        if choice is None or not choice.disable_parallel_tool_use:
            return delta
        return replace(delta, tool_calls=first_call_only(delta.tool_calls))

    def message(self, blocks: list[dict[str, Any]], end: dict[str, Any], used: Any) -> Any:
        """The message around blocks."""
        told = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model_name,
            "content": blocks,
            **end,
            "usage": used,
            "thinking": self.thinking,
        }
        return {**told, "warnings": self.warnings} if self.warnings else told

    def end(self, reason: str | None, detail: str | int | None) -> dict[str, Any]:
        """Why an answer ended."""
        names = {"length": "max_tokens", "repetition": "max_tokens", "tool_calls": "tool_use"}
        told = None if reason is None else names.get(reason, "end_turn")
        if reason == "length" and self.is_cut:
            told = "model_context_window_exceeded"
        stop = detail if isinstance(detail, str) else None
        if stop is not None:
            told = "stop_sequence"
        return {"stop_reason": told, "stop_sequence": stop}


async def messages(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, whole or as a stream."""

    def prepare(ask: Ask) -> _Job:
        job = _prepare(ask)
        if has_billing_line(job.request):
            state.observer.metrics.counters["volatile_prompt_headers"] += 1
        return job

    await answer(state, exchange, prepare, _whole, _Events)


async def count_tokens(state: ServerState, exchange: Exchange) -> None:
    """How many tokens a conversation is."""
    body = await exchange.read_json_body(state.config.max_body_bytes)
    _, model = state.require()
    ask = Ask(body, model, state.config)

    def work() -> dict[str, Any]:
        chat = _chat(ask, ask.read(CountRequest, OF_MESSAGES))
        told = {"input_tokens": len(chat.prompt_ids(model))}
        return {**told, "warnings": ask.warnings} if ask.warnings else told

    await exchange.respond(200, json.encode(await state.off_loop(work, len(body))))


def _chat(ask: Ask, request: CountRequest, **sampling: Any) -> Chat:
    ask.model.check_name(request.model)
    ask.config.check("max_messages", "messages", len(request.messages))
    tell_of_unheeded(ask, request)
    return Chat(
        limits=ask.config,
        id=f"msg_{uuid4().hex}",
        messages=messages_of(ask, request),
        tools=tools_of(request),
        tool_choice=tool_choice_of(request),
        thinking=thinking_of(request, ask.model.template),
        # An answer that has begun is gone on with.
        continue_final_message=bool(request.messages) and request.messages[-1].role == "assistant",
        sampling=ask.sampling(_NAMES, structured_outputs=form_of(request), **sampling),
    )


def _prepare(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request, model = ask.read(MessagesRequest, OF_MESSAGES), ask.model
    chat = _chat(
        ask,
        request,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences,
    )
    generate = chat.request(model)
    return _Job(
        request=request,
        generates=(generate,),
        id=chat.id,
        created_s=int(time.time()),
        model_name=request.model or model.name,
        is_stream=request.stream,
        warnings=tuple(ask.warnings),
        thinking=chat.thinking_echo(model),
        is_cut=(generate.sampling.max_tokens or 0) < request.max_tokens,
    )


async def _whole(job: _Job, exchange: Exchange, news: AsyncGenerator[News, None]) -> None:
    choice, tally = await collect(job, news, job.wanted)
    blocks = content(choice, shows_thinking=job.shows_thinking)
    end = {**job.end(choice.finish_reason, choice.stop_reason), **stray(choice)}
    await exchange.respond(200, json.encode(job.message(blocks, end, usage(tally.counts()))))


class _Events(Events[_Job]):
    """A message in pieces: blocks one after the other, each opened, filled and closed."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._index = -1
        self._open: tuple[str, int] | None = None
        self._flaw: dict[str, str] = {}
        self._end = job.end("stop", None)

    def opening(self, first: Delta | None) -> bytes:
        """The message without content; what the cache had is known with the first delta."""
        tally = self._job.tally()
        if first is not None:
            tally.add(0, Delta(num_cached=first.num_cached))
        start = self._job.message([], self._job.end(None, None), usage(tally.counts()))
        return event("message_start", message=start)

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta."""
        delta = self._job.wanted(delta)
        self._tally.add(number, delta)
        told: list[bytes] = []
        if delta.reasoning:
            told += self._enter("thinking", 0, {"thinking": "", "signature": ""})
            if self._job.shows_thinking:
                told.append(self._piece("thinking_delta", thinking=delta.reasoning))
        if delta.text:
            told += self._enter("text", 0, {"text": ""})
            told.append(self._piece("text_delta", text=delta.text))
        for call in delta.tool_calls:
            told += self._call(call)
        if delta.finish_reason is not None:
            end = self._job.end(delta.finish_reason, delta.stop_reason)
            self._end = {**end, **stray(delta)}
        return told

    def closing(self) -> bytes:
        """The end of the last block, why the answer ended, and all counts."""
        told = self._leave()
        told.append(event("message_delta", delta=self._end, usage=usage(self._tally.counts())))
        return b"".join([*told, event("message_stop")])

    def _call(self, call: ToolCallDelta) -> list[bytes]:
        block: dict[str, Any] = {"id": call.id, "name": call.name, "input": {}}
        told = self._enter("tool_use", call.index, block)
        if call.arguments:
            told.append(self._piece("input_json_delta", partial_json=call.arguments))
        if call.flaw:
            self._flaw = {"arguments_flaw": call.flaw}
        return told

    def _enter(self, kind: str, number: int, block: dict[str, Any]) -> list[bytes]:
        if self._open == (kind, number):
            return []
        told = self._leave()
        self._open, self._index = (kind, number), self._index + 1
        start = {"type": kind, **block}
        told.append(event("content_block_start", index=self._index, content_block=start))
        return told

    def _leave(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open, flaw, self._flaw = None, self._flaw, {}
        return [event("content_block_stop", index=self._index, **flaw)]

    def _piece(self, kind: str, **fields: Any) -> bytes:
        return event("content_block_delta", index=self._index, delta={"type": kind, **fields})
