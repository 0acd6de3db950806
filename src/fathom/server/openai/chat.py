"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from msgspec import UNSET, structs, to_builtins

from fathom.server.answer import Choice
from fathom.server.conversation import Chat
from fathom.server.exchange import Exchange
from fathom.server.job import Ask, Job, answer
from fathom.server.openai.reply import OpenAIReply
from fathom.server.openai.sampling import sampling_params
from fathom.server.openai.schema import ChatRequest, spellings
from fathom.server.openai.schema import Thinking as ThinkingField
from fathom.server.openai.structured import tool_choice
from fathom.server.openai.wire import (
    ChatChoice,
    MessageOut,
    Response,
    chat_logprobs,
    prompt_logprob_rows,
    tool_call,
    tool_call_piece,
)
from fathom.server.state import ServerState
from fathom.server.thinking import Thinking, one_meaning
from fathom.text.delta import Delta, TokenLogprob
from fathom.text.messages import parse_messages


async def chat_completions(state: ServerState, exchange: Exchange) -> None:
    """Answer a conversation, whole or as a stream."""
    await answer(state, exchange, _prepare, _Reply)


def _prepare(ask: Ask) -> Job[ChatRequest]:
    """From bytes to tokens. Raises: RequestError."""
    request, model = ask.read(ChatRequest, "openai", "chat"), ask.model
    model.check_name(request.model)
    ask.config.check("max_messages", "messages", len(request.messages))
    params = sampling_params(ask, request)
    if request.return_token_ids:
        model.tokenizer.require("return_token_ids")
    # The model may call what it is shown, so with "none" it is shown nothing.
    tools = None if request.tool_choice == "none" else request.tools or None
    ask.config.check_sequences(1, request.n)
    chat = Chat(
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
    return Job.of_chat(ask, request, chat)


def _thinking(request: ChatRequest) -> Thinking:
    """Whether reasoning is asked for, under any of its names."""
    effort, field, thinking, budget = request.reasoning_effort, "thinking", request.thinking, None
    if isinstance(thinking, ThinkingField):
        field, budget = "thinking.type", thinking.budget_tokens
        thinking = thinking.type == "enabled"
    return one_meaning(
        {
            **spellings(request.chat_template_kwargs),
            field: thinking,
            "enable_thinking": request.enable_thinking,
            "reasoning_effort": None if effort is None else effort != "none",
        },
        {
            "thinking.budget_tokens": budget,
            "thinking_token_budget": request.thinking_token_budget,
            "max_thinking_tokens": request.max_thinking_tokens,
        },
    )


class _Reply(OpenAIReply[Job[ChatRequest]]):
    """An answer, from its deltas. The last message goes before it, where it is to be its end."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, job: Job[ChatRequest]) -> None:
        super().__init__(job)
        last = parse_messages(job.request.messages)[-1] if job.request.echo else None
        self._echo = last.content if last is not None and last.role == "assistant" else ""

    def shown(self, delta: Delta) -> Delta:
        """Reasoning only where it is wanted."""
        delta = super().shown(delta)
        if delta.reasoning and not self._job.request.include_reasoning:
            delta = structs.replace(delta, reasoning="")
        return delta

    def whole(self) -> Response:
        """All choices."""
        request, (generate,), (choices,) = self._job.request, self._job.generates, self._choices
        rows = prompt_logprob_rows(choices[0].prompt_logprobs)
        return self._all(
            [self._choice(index, choice) for index, choice in enumerate(choices)],
            prompt_logprobs=UNSET if request.prompt_logprobs is None else rows,
            prompt_token_ids=generate.prompt_ids if request.return_token_ids else UNSET,
        )

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        request, text = self._job.request, self._echo + choice.text
        calls = [tool_call(call) for call in choice.tool_calls]
        content = text if text or not calls else None
        return ChatChoice(
            index,
            message=_message(choice.reasoning, calls, role="assistant", content=content),
            logprobs=self._scores(choice.logprobs) if request.logprobs else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if request.return_token_ids else UNSET,
            has_stray_markup=choice.has_stray_markup or UNSET,
        )

    def _scores(self, rows: Sequence[TokenLogprob]) -> dict[str, Any]:
        request = self._job.request
        as_ids = request.return_tokens_as_token_ids
        return chat_logprobs(rows, request.top_logprobs or 0, as_ids=as_ids)

    def opening(self, first: Delta | None) -> bytes:
        """A chunk for each choice that says whose message it is."""
        start = MessageOut(role="assistant", content=self._echo)
        request, (generate,) = self._job.request, self._job.generates
        ids = generate.prompt_ids if request.return_token_ids else UNSET
        return b"".join(
            self._event(ChatChoice(index, delta=start), prompt_token_ids=ids)
            for index in range(request.n)
        )

    def of(self, number: int, delta: Delta) -> list[bytes]:
        """The events of a delta: its news, and apart from them its end."""
        told = []
        shows_ids = self._job.request.return_token_ids and delta.token_ids
        if delta.text or delta.reasoning or delta.tool_calls or delta.logprobs or shows_ids:
            told.append(self._event(self._news(delta)))
        if delta.finish_reason is not None:
            end = ChatChoice(
                delta.index,
                delta=MessageOut(),
                finish_reason=delta.finish_reason,
                stop_reason=UNSET if delta.stop_reason is None else delta.stop_reason,
                has_stray_markup=delta.has_stray_markup or UNSET,
            )
            told.append(self._event(end))
        return told

    def _news(self, delta: Delta) -> ChatChoice:
        request, calls = self._job.request, [tool_call_piece(call) for call in delta.tool_calls]
        return ChatChoice(
            delta.index,
            delta=_message(delta.reasoning, calls, content=delta.text or UNSET),
            logprobs=self._scores(delta.logprobs) if request.logprobs and delta.logprobs else None,
            token_ids=delta.token_ids if request.return_token_ids else UNSET,
        )


def _message(reasoning: str, calls: list[dict[str, Any]], **more: Any) -> MessageOut:
    shown = reasoning or UNSET
    return MessageOut(**more, reasoning_content=shown, reasoning=shown, tool_calls=calls or UNSET)
