"""POST /api/chat and /api/generate."""

from __future__ import annotations

import time
from typing import Any, TypeVar
from uuid import uuid4

from msgspec import json

from fathom.core.types import SamplingParams
from fathom.engine.requests import GenerateRequest as Generate
from fathom.errors import RequestError
from fathom.server.answer import Choice, stray
from fathom.server.conversation import Chat, fit_context
from fathom.server.exchange import Exchange
from fathom.server.forms import one_form
from fathom.server.job import Ask, Job, Reply, answer
from fathom.server.ollama.schema import (
    ChatRequest,
    Common,
    GenerateRequest,
    Message,
    Options,
)
from fathom.server.ollama.wire import now, served_name, tool_call
from fathom.server.openai.wire import chat_logprobs
from fathom.server.state import ServerState
from fathom.server.thinking import one_meaning
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


CommonT = TypeVar("CommonT", bound=Common)


async def chat(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, as a stream unless told otherwise."""
    await answer(state, exchange, _prepare_chat, _Reply)


async def generate(state: ServerState, exchange: Exchange) -> None:
    """Answer a prompt, as a stream unless told otherwise."""
    await answer(state, exchange, _prepare_generate, _Reply)


def _prepare_chat(ask: Ask) -> Job[Common]:
    """From bytes to tokens. Raises: RequestError."""
    request = _read(ask, ChatRequest)
    if not request.messages:
        return Job.of(ask, request, "", ())
    ask.config.check("max_messages", "messages", len(request.messages))
    return _chat(ask, request, [_message(one) for one in request.messages], request.tools)


def _prepare_generate(ask: Ask) -> Job[Common]:
    """From bytes to tokens. Raises: RequestError."""
    request, model = _read(ask, GenerateRequest), ask.model
    if not (request.raw or request.suffix or request.prompt):
        return Job.of(ask, request, "", ())
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
    name = _id()
    return Job.of(ask, request, name, [Generate(id=name, prompt_ids=ids, sampling=sampling)])


def _read(ask: Ask, kind: type[CommonT]) -> CommonT:
    """The request, about a model that is here and stays. Raises: RequestError."""
    request = ask.read(kind, "ollama")
    served_name(ask.model, request.model)
    if request.keep_alive in (0, "0", "0s", "0m"):
        raise RequestError(
            "keep_alive cannot be 0: the model stays loaded while the server runs",
            param="keep_alive",
            code="unsupported_value",
        )
    return request


def _chat(ask: Ask, request: Common, messages: list[dict[str, Any]], tools: Any) -> Job[Common]:
    asked = Chat(
        id=_id(),
        messages=messages,
        tools=tools or None,
        thinking=one_meaning({"think": None if request.think is None else bool(request.think)}),
        sampling=_sampling(ask, request),
        continue_final_message=messages[-1]["role"] == "assistant"
        and not messages[-1].get("tool_calls"),
    )
    return Job.of_chat(ask, request, asked)


def _id() -> str:
    return f"ollama-{uuid4().hex}"


def _message(message: Message) -> dict[str, Any]:
    """The same in OpenAI's form."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "assistant":
        told["reasoning_content"] = message.thinking
    if message.tool_calls is not None:
        told["tool_calls"] = [
            {
                "id": call.id,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        told |= {"tool_call_id": message.tool_call_id, "name": message.tool_name}
    return told


def _sampling(ask: Ask, request: Common) -> SamplingParams:
    """Raises: RequestError that names the option."""
    options, most = request.options or Options(), ask.model.plan.max_model_len
    if options.num_ctx is not None and options.num_ctx > most:
        raise RequestError(
            "options.num_ctx is more than there is",
            param="options.num_ctx",
            found=str(options.num_ctx),
            wanted=f"at most {most}",
            fix="ask for less, or start the server with a larger --max-model-len",
        )
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs", param="top_logprobs")
    limit = options.num_predict
    return ask.sampling(
        _NAMES,
        options,
        structured_outputs=one_form({"format": _form(request.format)}),
        repetition_penalty=options.repeat_penalty,
        max_tokens=None if limit in (-1, -2) else limit,  # -1, -2: as many as fit
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def _form(asked: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not asked and not isinstance(asked, dict):
        return None
    return {"json_object": True} if asked == "json" else {"json": asked}


class _Reply(Reply[Job[Common]]):
    """A line for each delta, and a last one with the tool calls and the counts; a whole answer is
    one line."""

    def __init__(self, job: Job[Common]) -> None:
        super().__init__(job)
        self._choice = Choice()
        self._started_ns = time.monotonic_ns()
        self._first_ns: int | None = None

    def add(self, number: int, delta: Delta) -> None:
        """Keep what the last line says."""
        self._first_ns = self._first_ns or time.monotonic_ns()
        self._choice.add(delta)

    def whole(self) -> dict[str, Any]:
        """The only line."""
        choice = self._choice
        return self._last(choice.text, choice.reasoning, **self._scores(choice))

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The line of a delta."""
        self.add(number, delta)
        scores = self._scores(delta)
        if not (delta.text or delta.reasoning or scores):
            return []
        return [json.encode(self._record(delta.text, delta.reasoning, [], **scores)) + b"\n"]

    def closing(self) -> bytes:
        """The last line."""
        return json.encode(self._last("", "")) + b"\n"

    def _record(self, text: str, reasoning: str, calls: list[Any], **more: Any) -> dict[str, Any]:
        """One line: a piece of the answer, or all of it."""
        request = self._job.request
        told: dict[str, Any] = {"model": request.model, "created_at": now()}
        thinking = {"thinking": reasoning} if reasoning else {}
        if isinstance(request, ChatRequest):
            message = {"role": "assistant", "content": text, **thinking}
            told["message"] = {**message, "tool_calls": calls} if calls else message
        else:
            told |= {"response": text, **thinking}
        return {**told, "done": False, **more}

    def _last(self, text: str, reasoning: str, **more: Any) -> dict[str, Any]:
        """The last line. Times in nanoseconds; nothing is loaded for a request."""
        job, counts, ended_ns = self._job, self._tally.counts(), time.monotonic_ns()
        first_ns = self._first_ns or self._started_ns
        told: dict[str, Any] = {
            **more,
            "done": True,
            "done_reason": _REASONS.get(self._choice.finish_reason, "stop"),
            "total_duration": ended_ns - self._started_ns,
            "load_duration": 0,
            "prompt_eval_count": counts.prompt,
            "prompt_eval_duration": first_ns - self._started_ns,
            "eval_count": counts.completion,
            "eval_duration": ended_ns - first_ns,
            **stray(self._choice),
        }
        if job.thinking is not None:
            told["think"] = job.thinking["type"] == "enabled"
        if job.warnings:
            told["warnings"] = job.warnings
        calls = [tool_call(index, call) for index, call in enumerate(self._choice.tool_calls)]
        return self._record(text, reasoning, calls, **told)

    def _scores(self, told: Delta | Choice) -> dict[str, Any]:
        """The scores of the tokens, where they are wanted."""
        request = self._job.request
        if not request.logprobs or not told.logprobs:
            return {}
        scored = chat_logprobs(told.logprobs, request.top_logprobs or 0)
        return {"logprobs": scored["content"]}
