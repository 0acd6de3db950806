"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

from fathom.server.answer import Call, Tally, flaw_of, stray
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
from fathom.server.anthropic.wire import SIGNATURE, content, usage
from fathom.server.conversation import Chat
from fathom.server.envelope import event
from fathom.server.exchange import Exchange
from fathom.server.job import Ask, Job, Reply, answer, tell
from fathom.server.limits import renaming
from fathom.server.state import ServerState
from fathom.text.delta import Delta, ToolCallDelta

_NAMES = {"stop": "stop_sequences"}
_MESSAGES = {"messages": "messages"}  # whose places are not those of OpenAI's form
_EAGER_BETA = "fine-grained-tool-streaming-2025-05-14"


async def messages(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, whole or as a stream."""

    def prepare(ask: Ask) -> Job[MessagesRequest]:
        request = ask.read(MessagesRequest, "anthropic")
        chat = _chat(ask, request)
        with renaming(_MESSAGES):
            job: Job[MessagesRequest] = Job.of_chat(ask, request, chat)
        if has_billing_line(request):
            state.observer.metrics.counters["volatile_prompt_headers"] += 1
        return job

    is_eager = _EAGER_BETA in exchange.header(b"anthropic-beta")
    await answer(state, exchange, prepare, partial(_Reply, is_eager=is_eager))


async def count_tokens(state: ServerState, exchange: Exchange) -> None:
    """How many tokens a conversation is."""

    def work(ask: Ask) -> dict[str, Any]:
        chat = _chat(ask, ask.read(CountRequest, "anthropic"))
        with renaming(_MESSAGES):
            return {"input_tokens": len(chat.prompt_ids(ask.model, ask.config))}

    await tell(state, exchange, work)


def _chat(ask: Ask, request: CountRequest) -> Chat:
    ask.model.check_name(request.model)
    ask.config.check("max_messages", "messages", len(request.messages))
    tell_of_unheeded(ask, request)
    stop = request.stop_sequences if isinstance(request, MessagesRequest) else None
    return Chat(
        id=f"msg_{uuid4().hex}",
        messages=messages_of(ask, request),
        tools=tools_of(request),
        tool_choice=tool_choice_of(request),
        thinking=thinking_of(request, ask.model.template),
        # An answer that has begun is gone on with.
        continue_final_message=bool(request.messages) and request.messages[-1].role == "assistant",
        sampling=ask.sampling(_NAMES, request, stop=stop, structured_outputs=form_of(request)),
    )


class _Reply(Reply[Job[MessagesRequest]]):
    """A message, in a stream in pieces: blocks in a row, each opened, filled and closed.

    Arguments of a call come in one piece, when it is known that they are JSON: clients of this API
    take nothing else. A tool, or a header, may ask for them as they are written.
    """

    def __init__(self, job: Job[MessagesRequest], *, is_eager: bool) -> None:
        super().__init__(job)
        tools, asked = job.request.tools or (), job.request.thinking
        self._eager = {one.name for one in tools if is_eager or one.eager_input_streaming}
        self._held: Call | None = None
        self._shows_thinking = asked is None or asked.display != "omitted"
        self._index = -1
        self._open: tuple[str, int] | None = None
        self._flaw: dict[str, str] = {}
        self._end = self._ended("stop", None)

    def whole(self) -> dict[str, Any]:
        """The message."""
        ((choice,),) = self._choices
        blocks = content(choice, shows_thinking=self._shows_thinking)
        end = {**self._ended(choice.finish_reason, choice.stop_reason), **stray(choice)}
        return self._message(blocks, end, self._tally)

    def _message(
        self, blocks: list[dict[str, Any]], end: dict[str, Any], tally: Tally
    ) -> dict[str, Any]:
        job = self._job
        told = {
            "id": job.id,
            "type": "message",
            "role": "assistant",
            "model": job.model_name,
            "content": blocks,
            **end,
            "usage": usage(tally.counts()),
            "thinking": job.thinking,
        }
        return {**told, "warnings": job.warnings} if job.warnings else told

    def _ended(self, reason: str | None, detail: str | int | None) -> dict[str, Any]:
        """Why an answer ended. The context may leave less room than was asked for."""
        names = {"length": "max_tokens", "repetition": "max_tokens", "tool_calls": "tool_use"}
        told = None if reason is None else names.get(reason, "end_turn")
        room = self._job.generates[0].sampling.max_tokens or 0
        if reason == "length" and room < self._job.request.max_tokens:
            told = "model_context_window_exceeded"
        stop = detail if isinstance(detail, str) else None
        if stop is not None:
            told = "stop_sequence"
        return {"stop_reason": told, "stop_sequence": stop}

    def opening(self, first: Delta | None) -> bytes:
        """The message without content; what the cache had is known with the first delta."""
        tally = self._job.tally()
        if first is not None:
            tally.add(0, Delta(num_cached=first.num_cached))
        return event("message_start", message=self._message([], self._ended(None, None), tally))

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta."""
        open_calls, new_calls = delta.calls_by_age
        told = [part for call in open_calls for part in self._call(call)]
        if delta.reasoning:
            told += self._enter("thinking", 0, {"thinking": "", "signature": ""})
            if self._shows_thinking:
                told.append(self._piece("thinking_delta", thinking=delta.reasoning))
        if delta.text:
            told += self._enter("text", 0, {"text": ""})
            told.append(self._piece("text_delta", text=delta.text))
        for call in new_calls:
            told += self._call(call)
        if delta.finish_reason is not None:
            end = self._ended(delta.finish_reason, delta.stop_reason)
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
        if call.name is not None and call.name not in self._eager:
            self._held = Call(call.id or "", call.name)
        if self._held is not None:
            self._held.pieces.append(call.arguments)
        elif call.arguments:
            told.append(self._piece("input_json_delta", partial_json=call.arguments))
        self._flaw = flaw_of(call) or self._flaw
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
        told = []
        if self._open[0] == "thinking":
            told = [self._piece("signature_delta", signature=SIGNATURE)]
        if self._held is not None:
            told = [self._piece("input_json_delta", partial_json=self._held.as_text())]
        self._open, self._held, flaw, self._flaw = None, None, self._flaw, {}
        return [*told, event("content_block_stop", index=self._index, **flaw)]

    def _piece(self, kind: str, **fields: Any) -> bytes:
        return event("content_block_delta", index=self._index, delta={"type": kind, **fields})
