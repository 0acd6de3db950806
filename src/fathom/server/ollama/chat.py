"""POST /api/chat and /api/generate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from msgspec import json, to_builtins

from fathom.core.types import SamplingParams
from fathom.engine.requests import GenerateRequest as Generate
from fathom.errors import RequestError
from fathom.server.answer import Choice, Tally, stray
from fathom.server.conversation import Chat, fit_context
from fathom.server.exchange import Exchange
from fathom.server.forms import one_form
from fathom.server.generation import News
from fathom.server.job import Ask, Events, Job, answer, collect
from fathom.server.ollama.schema import (
    REFUSALS,
    ChatRequest,
    Common,
    GenerateRequest,
    Message,
    Options,
)
from fathom.server.ollama.wire import now, served_name, tool_call
from fathom.server.openai.responses import chat_logprobs
from fathom.server.state import ServerState
from fathom.server.thinking import Thinking
from fathom.text.delta import Delta
from fathom.text.prompt import encode_infill, encode_prompt

# None: nothing was asked, which is how clients have a model loaded.
_REASONS = {"length": "length", "repetition": "repetition", None: "load"}

_NAMES = {
    **{name: f"options.{name}" for name in Options.__struct_fields__},
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "logprobs": "top_logprobs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(Job[Common]):
    """A conversation or a prompt; `thinks` where a template is asked."""

    thinks: bool | None
    started_ns: int

    def record(self, text: str, reasoning: str, calls: list[Any], **more: Any) -> dict[str, Any]:
        """One line: a piece of the answer, or all of it."""
        told: dict[str, Any] = {"model": self.request.model, "created_at": now()}
        thinking = {"thinking": reasoning} if reasoning else {}
        if isinstance(self.request, ChatRequest):
            message = {"role": "assistant", "content": text, **thinking}
            told["message"] = {**message, "tool_calls": calls} if calls else message
        else:
            told |= {"response": text, **thinking}
        return {**told, "done": False, **more}

    def end(self, choice: Choice, tally: Tally, first_ns: int) -> dict[str, Any]:
        """The fields of the last line. Times in nanoseconds; nothing is loaded for a request."""
        counts, ended_ns = tally.counts(), time.monotonic_ns()
        told: dict[str, Any] = {
            "done": True,
            "done_reason": _REASONS.get(choice.finish_reason, "stop"),
            "total_duration": ended_ns - self.started_ns,
            "load_duration": 0,
            "prompt_eval_count": counts.prompt,
            "prompt_eval_duration": first_ns - self.started_ns,
            "eval_count": counts.completion,
            "eval_duration": ended_ns - first_ns,
            **stray(choice),
        }
        if self.thinks is not None:
            told["think"] = self.thinks
        if self.warnings:
            told["warnings"] = self.warnings
        return told

    def logprobs(self, delta: Delta | Choice) -> dict[str, Any]:
        """The scores of the delta's tokens, where they are wanted."""
        if not self.request.logprobs or not delta.logprobs:
            return {}
        scored = chat_logprobs(delta.logprobs, self.request.top_logprobs or 0)
        return {"logprobs": scored["content"]}


async def chat(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, as a stream unless told otherwise."""
    await answer(state, exchange, _prepare_chat, _whole, _Lines)


async def generate(state: ServerState, exchange: Exchange) -> None:
    """Answer a prompt, as a stream unless told otherwise."""
    await answer(state, exchange, _prepare_generate, _whole, _Lines)


def _prepare_chat(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request = ask.read(ChatRequest, REFUSALS)
    if not request.messages:
        return _job(ask, request, (), None)
    ask.config.check("max_messages", "messages", len(request.messages))
    return _chat(ask, request, [_message(one) for one in request.messages], request.tools)


def _prepare_generate(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request, model = ask.read(GenerateRequest, REFUSALS), ask.model
    if not (request.raw or request.suffix or request.prompt):
        return _job(ask, request, (), None)
    if not (request.raw or request.suffix):
        messages = [{"role": "user", "content": request.prompt}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        return _chat(ask, request, messages, None)
    for name in ("system", "think"):
        if getattr(request, name):
            raise RequestError(
                f"{name} does not go with raw or suffix, which know no template", param=name
            )
    params = _sampling(ask, request)
    if request.suffix:
        ids = encode_infill(model.tokenizer, request.prompt, request.suffix)
    else:
        ids = encode_prompt(model.tokenizer, request.prompt)
    sampling = fit_context(params, len(ids), model.plan.max_model_len)
    return _job(ask, request, (Generate(id=_id(), prompt_ids=ids, sampling=sampling),), None)


def _chat(ask: Ask, request: Common, messages: list[dict[str, Any]], tools: Any) -> _Job:
    asked = Chat(
        limits=ask.config,
        id=_id(),
        messages=messages,
        tools=tools or None,
        thinking=Thinking(None if request.think is None else bool(request.think)),
        sampling=_sampling(ask, request),
        continue_final_message=bool(messages) and messages[-1]["role"] == "assistant",
    )
    thinks = asked.thinking_echo(ask.model)["type"] == "enabled"
    return _job(ask, request, (asked.request(ask.model),), thinks)


def _id() -> str:
    return f"ollama-{uuid4().hex}"


def _job(ask: Ask, request: Common, generates: tuple[Generate, ...], thinks: bool | None) -> _Job:
    if request.keep_alive in (0, "0", "0s", "0m"):
        raise RequestError(
            "keep_alive cannot be 0: the model stays loaded while the server runs",
            param="keep_alive",
            code="unsupported_value",
        )
    return _Job(
        request=request,
        generates=generates,
        id="",
        created_s=int(time.time()),
        model_name=served_name(ask.model, request.model),
        is_stream=request.stream,
        warnings=tuple(ask.warnings),
        thinks=thinks,
        started_ns=time.monotonic_ns(),
    )


def _message(message: Message) -> dict[str, Any]:
    """The same in OpenAI's form."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "assistant":
        told["reasoning_content"] = message.thinking
    if message.tool_calls is not None:
        told["tool_calls"] = [
            {"function": to_builtins(call.function)} for call in message.tool_calls
        ]
    if message.role == "tool":
        told |= {"tool_call_id": message.tool_call_id, "name": message.tool_name}
    return told


def _sampling(ask: Ask, request: Common) -> SamplingParams:
    """Raises: RequestError that names the option."""
    options = to_builtins(request.options) if request.options else {}
    needed, most = options.pop("num_ctx", None), ask.model.plan.max_model_len
    if needed is not None and needed > most:
        raise RequestError(
            "options.num_ctx is more than there is",
            param="options.num_ctx",
            found=str(needed),
            wanted=f"at most {most}",
            fix="ask for less, or start the server with a larger --max-model-len",
        )
    limit = options.pop("num_predict", None)
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs", param="top_logprobs")
    return ask.sampling(
        _NAMES,
        structured_outputs=one_form({"format": _form(request.format)}),
        repetition_penalty=options.pop("repeat_penalty", None),
        max_tokens=None if limit in (-1, -2) else limit,  # -1, -2: as many as fit
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        **options,
    )


def _form(asked: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not asked and not isinstance(asked, dict):
        return None
    return {"json_object": True} if asked == "json" else {"json": asked}


async def _whole(job: _Job, exchange: Exchange, news: AsyncGenerator[News, None]) -> None:
    first_ns: list[int] = []

    def seen(delta: Delta) -> Delta:
        first_ns.append(time.monotonic_ns())
        return delta

    choice, tally = await collect(job, news, seen)
    calls = [tool_call(index, call) for index, call in enumerate(choice.tool_calls)]
    end = job.end(choice, tally, first_ns[0] if first_ns else job.started_ns)
    record = job.record(choice.text, choice.reasoning, calls, **job.logprobs(choice), **end)
    await exchange.respond(200, json.encode(record))


class _Lines(Events[_Job]):
    """A line for each delta, and a last one with the tool calls and the counts."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._choice = Choice()
        self._first_ns: int | None = None

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The line of a delta."""
        self._first_ns = self._first_ns or time.monotonic_ns()
        self._tally.add(number, delta)
        self._choice.add(delta)
        scores = self._job.logprobs(delta)
        if not (delta.text or delta.reasoning or scores):
            return []
        record = self._job.record(delta.text, delta.reasoning, [], **scores)
        return [json.encode(record) + b"\n"]

    def closing(self) -> bytes:
        """The last line."""
        calls = [tool_call(index, call) for index, call in enumerate(self._choice.tool_calls)]
        end = self._job.end(self._choice, self._tally, self._first_ns or self._job.started_ns)
        return json.encode(self._job.record("", "", calls, **end)) + b"\n"
