"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from msgspec import Struct, to_builtins

from fathom.errors import RequestError, UnavailableError
from fathom.server.answer import Tally, stray
from fathom.server.conversation import Chat
from fathom.server.envelope import event
from fathom.server.exchange import Exchange
from fathom.server.job import Ask, Job, Reply, answer, tell
from fathom.server.limits import renaming
from fathom.server.openai.wire import chat_logprobs
from fathom.server.responses.items import (
    earlier_items,
    form_of,
    format_of,
    messages_of,
    plain,
    read_items,
    tool_choice_of,
    tools_of,
)
from fathom.server.responses.schema import CountRequest, ResponsesRequest
from fathom.server.responses.store import Kept, ResponseStore
from fathom.server.responses.wire import OpenItem, usage
from fathom.server.state import ServerState
from fathom.server.thinking import one_meaning
from fathom.text.delta import Delta, ToolCallDelta

_log = logging.getLogger(__name__)
_NAMES = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs"}
_MESSAGES = {"messages": "input"}
_SCORES = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(Job[ResponsesRequest]):
    """A conversation. `keep` is told of the whole answer, where it is to be kept."""

    keep: Callable[[dict[str, Any]], None]

    def response(self, status: str, output: list[Any], tally: Tally | None) -> dict[str, Any]:
        """The answer as an object; `tally` None: it has just begun."""
        request, sampling = self.request, self.generates[0].sampling
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        told = {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.model_name,
            "output": output,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": request.previous_response_id,
            "reasoning": to_builtins(request.reasoning) or {"effort": None, "summary": None},
            "store": request.store,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": {"format": format_of(request)},
            "tool_choice": to_builtins(request.tool_choice) or "auto",
            "tools": to_builtins(request.tools) or [],
            "truncation": "disabled",
            "usage": usage(tally.counts()) if tally is not None else None,
            "metadata": request.metadata or {},
            "thinking": self.thinking,
        }
        return {**told, "warnings": self.warnings} if self.warnings else told


async def create(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, whole or as a stream, and keep the answer unless told not to."""
    store, tenant = state.responses, exchange.tenant
    await answer(state, exchange, lambda ask: _prepare(ask, store, tenant), _Reply)


async def input_tokens(state: ServerState, exchange: Exchange) -> None:
    """How many tokens a conversation is."""

    def work(ask: Ask) -> dict[str, Any]:
        request = ask.read(CountRequest, "responses")
        items = read_items(ask, request, "")
        chat = _chat(ask, request, "", items, state.responses, exchange.tenant)
        with renaming(_MESSAGES):
            count = len(chat.prompt_ids(ask.model, ask.config))
        return {"object": "response.input_tokens", "input_tokens": count}

    await tell(state, exchange, work)


def _prepare(ask: Ask, store: ResponseStore, tenant: str) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request, name = ask.read(ResponsesRequest, "responses"), uuid4().hex
    items = read_items(ask, request, name)
    sampling = {
        "max_tokens": request.max_output_tokens,
        "logprobs": (request.top_logprobs or 0) if _SCORES in request.include else None,
    }
    if request.top_logprobs and _SCORES not in request.include:
        raise RequestError(f"top_logprobs needs include: [{_SCORES}]", param="top_logprobs")
    chat = _chat(ask, request, f"resp_{name}", items, store, tenant, **sampling)
    chat = replace(chat, cache_salt=request.cache_salt or "", priority=request.priority or 0)
    if "reasoning.encrypted_content" in request.include:
        ask.warnings.append("include: reasoning is given in the open, not encrypted")

    def keep(response: dict[str, Any]) -> None:
        if not request.store:
            return
        try:
            store.put(tenant, Kept(response, [plain(item) for item in items]))
        except UnavailableError as error:  # the answer is there: it is told, though it is not kept
            _log.warning("an answer is not kept error=%s", error)
            told = f"store: this answer is not kept: {error}"
            response |= {"store": False, "warnings": [*response.get("warnings", ()), told]}

    with renaming(_MESSAGES):
        return _Job.of_chat(ask, request, chat, keep=keep)


def _chat(
    ask: Ask,
    request: CountRequest,
    name: str,
    items: list[Struct],
    store: ResponseStore,
    tenant: str,
    **sampling: Any,
) -> Chat:
    """Raises: NotFoundError where an earlier answer is no more; RequestError."""
    ask.model.check_name(request.model)
    earlier = earlier_items(ask, request, store, tenant)
    ask.config.check("max_messages", "input", len(earlier) + len(items))
    effort = request.reasoning.effort if request.reasoning else None
    if request.reasoning and request.reasoning.summary:
        ask.warnings.append("reasoning.summary: reasoning is given in full, not summarised")
    return Chat(
        id=name,
        messages=messages_of(request.instructions, [*earlier, *items]),
        tools=tools_of(request),
        tool_choice=tool_choice_of(request),
        thinking=one_meaning(
            {
                "reasoning.effort": None if effort is None else effort != "none",
                "enable_thinking": request.enable_thinking,
            },
            {"thinking_token_budget": request.thinking_token_budget},
        ),
        sampling=ask.sampling(_NAMES, request, structured_outputs=form_of(request), **sampling),
    )


class _Reply(Reply[_Job]):
    """An answer in pieces: items one after the other, each added, filled and done. A whole one is
    what the events lead to."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._number = -1
        self._open: OpenItem | None = None
        self._output: list[dict[str, Any]] = []
        self._reason: str | None = None
        self._scores: list[Any] = []  # of tokens whose text is not certain yet
        self._stray: dict[str, bool] = {}

    def add(self, number: int, delta: Delta) -> None:
        """Keep what the events of a delta lead to."""
        self.of(number, delta)

    def whole(self) -> dict[str, Any]:
        """The answer, which is kept now."""
        self._leave(self._status)
        response = self._job.response(self._status, self._output, self._tally) | self._stray
        self._job.keep(response)
        return response

    def opening(self, first: Delta | None) -> bytes:
        """The answer without output, twice, as clients expect."""
        response = self._job.response("in_progress", [], None)
        names = ("response.created", "response.in_progress")
        return b"".join(self._event(name, response=response) for name in names)

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta."""
        open_calls, new_calls = delta.calls_by_age
        told = [part for call in open_calls for part in self._call(call)]
        if delta.text_logprobs:
            num_top = self._job.request.top_logprobs or 0
            self._scores += chat_logprobs(delta.text_logprobs, num_top)["content"]
        if delta.reasoning:
            told += self._enter("reasoning", 0)
            told.append(self._piece("response.reasoning_text.delta", delta.reasoning))
        if delta.text:
            told += self._enter("message", 0)
            scores = self._new_scores()
            told.append(self._piece("response.output_text.delta", delta.text, logprobs=scores))
        for call in new_calls:
            told += self._call(call)
        self._reason = delta.finish_reason or self._reason
        self._stray = stray(delta)
        return told

    def _call(self, call: ToolCallDelta) -> list[bytes]:
        told = self._enter("function_call", call.index, call.name or "", call.id or "")
        if self._open is not None:
            self._open.flaw = call.flaw or self._open.flaw
        if call.arguments:
            told.append(self._piece("response.function_call_arguments.delta", call.arguments))
        return told

    def closing(self) -> bytes:
        """The end of the last item and the whole answer."""
        told = self._leave(self._status)
        told.append(self._event(f"response.{self._status}", response=self.whole()))
        return b"".join(told)

    @property
    def _status(self) -> str:
        return "incomplete" if self._reason in ("length", "repetition") else "completed"

    def _enter(self, kind: str, number: int, name: str = "", call_id: str = "") -> list[bytes]:
        if self._open is not None and (self._open.kind, self._open.number) == (kind, number):
            return []
        told = self._leave("completed")
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item_id = f"{prefix}_{self._job.id.removeprefix('resp_')}_{len(self._output)}"
        item = self._open = OpenItem(kind, number, item_id, name, call_id)
        where = {"output_index": len(self._output)}
        told.append(
            self._event("response.output_item.added", item=item.told("in_progress"), **where)
        )
        if kind != "function_call":
            told.append(self._event("response.content_part.added", part=item.part, **self._at()))
        return told

    def _leave(self, status: str) -> list[bytes]:
        item = self._open
        if item is None:
            return []
        at, told = self._at(), []
        if item.kind == "function_call":
            done = "response.function_call_arguments.done"
            told.append(self._event(done, arguments=item.text, name=item.name, **at))
        elif item.kind == "reasoning":
            told.append(self._event("response.reasoning_text.done", text=item.text, **at))
        else:
            self._new_scores()
            done = "response.output_text.done"
            told.append(self._event(done, text=item.text, logprobs=item.scores, **at))
        if item.kind != "function_call":
            told.append(self._event("response.content_part.done", part=item.part, **at))
        whole, index = item.told(status), len(self._output)
        told.append(self._event("response.output_item.done", item=whole, output_index=index))
        self._output.append(whole)
        self._open = None
        return told

    def _new_scores(self) -> list[Any]:
        """The scores that came since the last piece of text, which are the open message's."""
        assert self._open is not None
        scores, self._scores = self._scores, []
        self._open.scores += scores
        return scores

    def _piece(self, name: str, text: str, **more: Any) -> bytes:
        assert self._open is not None
        self._open.pieces.append(text)
        return self._event(name, delta=text, **self._at(), **more)

    def _at(self) -> dict[str, Any]:
        assert self._open is not None
        at = {"item_id": self._open.id, "output_index": len(self._output)}
        return at if self._open.kind == "function_call" else {**at, "content_index": 0}

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        self._number += 1
        return event(kind, sequence_number=self._number, **fields)
