"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from uuid import uuid4

from msgspec import UNSET, json, to_builtins

from fathom.server.answer import Choice, first_call_only
from fathom.server.conversation import Chat
from fathom.server.exchange import Exchange
from fathom.server.generation import News
from fathom.server.job import Ask, answer
from fathom.server.openai.job import Chunks, OpenAIJob
from fathom.server.openai.refused import OF_CHAT
from fathom.server.openai.responses import (
    ChatChoice,
    ChatChunkChoice,
    MessageOut,
    chat_logprobs,
    prompt_logprob_rows,
    tool_call,
    tool_call_piece,
    usage,
)
from fathom.server.openai.sampling import sampling_params
from fathom.server.openai.schema import ChatRequest, given
from fathom.server.openai.schema import Thinking as ThinkingField
from fathom.server.openai.structured import tool_choice
from fathom.server.state import ServerState
from fathom.server.thinking import Thinking, one_meaning
from fathom.text.chat import asked_thinking
from fathom.text.delta import Delta
from fathom.text.messages import parse_messages


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(OpenAIJob[ChatRequest]):
    """A conversation. `echo` goes before each answer."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    echo: str = ""


async def chat_completions(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, whole or as a stream."""
    await answer(state, exchange, _prepare, _whole, _Chunks)


def _prepare(ask: Ask) -> _Job:
    """From bytes to tokens. Raises: RequestError."""
    request, model = ask.read(ChatRequest, OF_CHAT), ask.model
    model.check_name(request.model)
    ask.config.check("max_messages", "messages", len(request.messages))
    params = sampling_params(ask, request)
    if request.return_token_ids:
        model.tokenizer.require("return_token_ids")
    # The model may call what it is shown, so with "none" it is shown nothing.
    tools = None if request.tool_choice == "none" else request.tools or None
    ask.config.check_sequences(1, request.n)
    chat = Chat(
        limits=ask.config,
        id=f"chatcmpl-{request.request_id or uuid4().hex}",
        messages=request.messages,
        tools=to_builtins(tools),
        sampling=params,
        thinking=_thinking(request),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        cache_salt=request.cache_salt or "",
        priority=request.priority,
        num_kept=request.truncate_prompt_tokens,
        tool_choice=tool_choice(request),
    )
    return _Job(
        request=request,
        generates=(chat.request(model),),
        id=chat.id,
        created_s=int(time.time()),
        model_name=request.model or model.name,
        is_stream=request.stream,
        warnings=tuple(ask.warnings),
        thinking=chat.thinking_echo(model),
        echo=_echo(request),
    )


def _echo(request: ChatRequest) -> str:
    """The last message, where the answer is to be read as its end."""
    last = parse_messages(request.messages)[-1] if request.echo else None
    return last.content if last is not None and last.role == "assistant" else ""


def _thinking(request: ChatRequest) -> Thinking:
    """Whether reasoning is asked for, under any of its names."""
    effort, thinking, budget = request.reasoning_effort, request.thinking, None
    if isinstance(thinking, ThinkingField):
        budget, thinking = thinking.budget_tokens, thinking.type == "enabled"
    return one_meaning(
        {
            "chat_template_kwargs": asked_thinking(given(request.chat_template_kwargs)),
            "thinking": thinking,
            "enable_thinking": request.enable_thinking,
            "reasoning_effort": None if effort is None else effort != "none",
        },
        {
            "thinking.budget_tokens": budget,
            "thinking_token_budget": request.thinking_token_budget,
            "max_thinking_tokens": request.max_thinking_tokens,
        },
    )


async def _whole(job: _Job, exchange: Exchange, news: AsyncGenerator[News, None]) -> None:
    request = job.request
    choices = [Choice() for _ in range(request.n)]
    tally = job.tally()
    async for number, deltas in news:
        for delta in deltas:
            tally.add(number, delta)
            choices[delta.index].add(_wanted(delta, request))
    scores = choices[0].prompt_logprobs
    response = job.response(
        job.kind,
        [_choice(index, choice, job) for index, choice in enumerate(choices)],
        usage=usage(tally.counts()),
        prompt_logprobs=UNSET if request.prompt_logprobs is None else prompt_logprob_rows(scores),
        prompt_token_ids=job.generates[0].prompt_ids if request.return_token_ids else UNSET,
        **job.said(),
    )
    await exchange.respond(200, json.encode(response))


def _choice(index: int, choice: Choice, job: _Job) -> ChatChoice:
    request, text = job.request, job.echo + choice.text
    calls = [tool_call(call) for call in choice.tool_calls]
    message = MessageOut(
        role="assistant",
        content=text if text or not calls else None,
        reasoning_content=choice.reasoning or UNSET,
        reasoning=choice.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )
    return ChatChoice(
        index=index,
        message=message,
        logprobs=chat_logprobs(choice.logprobs, request.top_logprobs or 0)
        if request.logprobs
        else None,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        token_ids=choice.token_ids if request.return_token_ids else UNSET,
        has_stray_markup=choice.has_stray_markup or UNSET,
    )


def _wanted(delta: Delta, request: ChatRequest) -> Delta:
    if delta.tool_calls and not request.parallel_tool_calls:
        delta = replace(delta, tool_calls=first_call_only(delta.tool_calls))
    if delta.reasoning and not request.include_reasoning:
        delta = replace(delta, reasoning="")
    return delta


class _Chunks(Chunks[_Job]):
    """A stream's events, from its deltas."""

    def opening(self, first: Delta | None) -> bytes:
        """A chunk for each choice that says whose message it is."""
        start = MessageOut(role="assistant", content=self._job.echo)
        request, (generate,) = self._job.request, self._job.generates
        ids = generate.prompt_ids if request.return_token_ids else UNSET
        return b"".join(
            self._event(ChatChunkChoice(index, start), prompt_token_ids=ids)
            for index in range(request.n)
        )

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta: its news, and apart from them its end."""
        delta = _wanted(delta, self._job.request)
        self._tally.add(number, delta)
        told = []
        shows_ids = self._job.request.return_token_ids and delta.token_ids
        if delta.text or delta.reasoning or delta.tool_calls or delta.logprobs or shows_ids:
            told.append(self._event(self._news(delta)))
        if delta.finish_reason is not None:
            end = ChatChunkChoice(
                delta.index,
                MessageOut(),
                finish_reason=delta.finish_reason,
                stop_reason=UNSET if delta.stop_reason is None else delta.stop_reason,
                has_stray_markup=delta.has_stray_markup or UNSET,
            )
            told.append(self._event(end))
        return told

    def _news(self, delta: Delta) -> ChatChunkChoice:
        request = self._job.request
        message = MessageOut(
            content=delta.text or UNSET,
            reasoning_content=delta.reasoning or UNSET,
            reasoning=delta.reasoning or UNSET,
            tool_calls=[tool_call_piece(call) for call in delta.tool_calls] or UNSET,
        )
        return ChatChunkChoice(
            delta.index,
            message,
            logprobs=chat_logprobs(delta.logprobs, request.top_logprobs or 0)
            if request.logprobs and delta.logprobs
            else None,
            token_ids=delta.token_ids if request.return_token_ids else UNSET,
        )
