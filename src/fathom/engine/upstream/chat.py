"""A conversation as /v1/chat/completions, and its events as deltas.

The upstream renders and parts the answer. What it left in the text is parted here, as far as text
allows: reasoning that the answer opens with, and tool calls where tools are offered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, structs

from fathom.core.loop_guard import LoopLimits
from fathom.engine.requests import GenerateRequest, Unrendered
from fathom.engine.upstream.chat_answer import Answer, Message
from fathom.engine.upstream.failures import event_error
from fathom.engine.upstream.kinds import Kind, form_fields, refused, sampling_fields
from fathom.engine.upstream.wire import Usage
from fathom.perf.http_stream import BrokenStream
from fathom.text.channels import Told
from fathom.text.delta import Delta, FinishReason
from fathom.text.grammar.asked import ToolRules

PATH = "/v1/chat/completions"
# Sampling that stands for "not asked": the upstream's own defaults hold. No client sends this.
NOT_ASKED = 1 - 2**-40
_REASONS: dict[str, FinishReason] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls",
    "repetition": "repetition",
}  # fmt: skip


class _Choice(Struct):
    index: int = 0
    delta: Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None  # SGLang's name for it
    has_stray_markup: bool = False  # a fathom's


class _Event(Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


def body_of(
    request: GenerateRequest, conversation: Unrendered, kind: Kind, model: str
) -> dict[str, Any]:
    """The request as the upstream gets it. Raises: RequestError for what it cannot be asked."""
    sampling = request.sampling
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(sampling, name) is not None:
            raise refused(name, kind, "no tokens", "start the proxy with --tokenizer")
    told = {"model": model, "messages": conversation.messages, **sampling_fields(request, kind)}
    told |= {"stream": True, "stream_options": {"include_usage": True}}
    for name in ("temperature", "top_p"):
        if told[name] == NOT_ASKED:
            del told[name]
    if told["max_tokens"] is None:
        del told["max_tokens"]
    if sampling.stop:
        told["stop"] = list(sampling.stop)
    for name, neutral in (("include_stop_str_in_output", False), ("skip_special_tokens", True)):
        if getattr(sampling, name) != neutral:
            raise refused(name, kind, "no tokens", "start the proxy with --tokenizer")
    told |= _of_conversation(conversation, kind)
    if sampling.structured_outputs is not None:
        told |= form_fields(sampling.structured_outputs, kind)
    return told | _tool_fields(conversation.tools or [], request.tools, kind)


def _tool_fields(
    tools: list[dict[str, Any]], rules: ToolRules | None, kind: Kind
) -> dict[str, Any]:
    if rules is None or not rules.must_call:
        return {"tools": tools} if tools else {}
    if "tool_choice" in kind.lacks:
        raise refused("tool_choice", kind, kind.lacks["tool_choice"])
    name = rules.tools[0].name
    if not (len(rules.tools) == 1 and rules.is_single):
        return {"tools": tools, "tool_choice": "required"}
    if "tool_choice.function" in kind.lacks:
        if len(tools) > 1:
            why = f"an upstream of kind {kind.name}, which heeds no name there"
            raise refused("tool_choice", kind, why, "offer that tool alone")
        return {"tools": tools, "tool_choice": "required"}
    if kind.hides_tools:
        tools = [tool for tool in tools if tool["function"]["name"] == name]
    return {"tools": tools, "tool_choice": {"type": "function", "function": {"name": name}}}


def _of_conversation(conversation: Unrendered, kind: Kind) -> dict[str, Any]:
    told: dict[str, Any] = {}
    is_on = conversation.thinking
    if is_on is not None:
        if kind.thinking == "none":
            raise refused("thinking", kind)
        told |= (
            {"chat_template_kwargs": {"thinking": is_on, "enable_thinking": is_on}}
            if kind.thinking == "template"
            else {"thinking": {"type": "enabled" if is_on else "disabled"}}
        )
    if conversation.budget is not None:
        if not kind.has_budget:
            raise refused("thinking_token_budget", kind)
        told["thinking_token_budget"] = conversation.budget
    begins = conversation.add_generation_prompt
    if conversation.continues or begins is not None:
        if not kind.can_continue:
            raise refused("continue_final_message", kind)
        if "add_generation_prompt" not in kind.lacks:
            told["add_generation_prompt"] = not conversation.continues if begins is None else begins
        elif begins is conversation.continues:  # without the field it does the contrary
            raise refused("add_generation_prompt", kind)
        told["continue_final_message"] = conversation.continues
    return told


class ChatReader:
    """Events of the upstream in, deltas out, by `give`.

    The ends of the choices wait for the usage, which comes last. Until then each piece counts as a
    token; then the first choice has what the others do not. An answer that loops ends at once, and
    does not know how long its prompt was.
    """

    def __init__(
        self,
        name: str,
        num_choices: int,
        reads_tools: bool,
        give: Callable[[Delta], None],
        loops: LoopLimits | None = None,
        stop_ids: tuple[int, ...] = (),
    ) -> None:
        self._answers = [Answer(f"call_{name}_{i}", reads_tools, loops) for i in range(num_choices)]
        self._stop_ids = stop_ids
        self._looped: set[int] = set()
        self._give = give
        self._usage = Usage()
        self._ends: dict[int, Delta] = {}
        self.has_news = False

    def event(self, raw: bytes) -> None:
        """One event. Raises: BrokenStream."""
        try:
            event = _DECODER.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BrokenStream(f"not an event of /v1/chat/completions: {error}") from error
        if event.error is not None:
            raise event_error(event.error)
        if event.usage is not None:
            self._usage = event.usage
        for choice in event.choices:
            self._choice(choice)

    def finish(self) -> None:
        """The stream is over. Raises: BrokenStream where a choice is not."""
        if len(self._ends) + len(self._looped) < len(self._answers):
            raise BrokenStream("the answer has no end")
        usage = self._usage
        others = sum(answer.num_tokens for answer in self._answers[1:])
        for index, end in self._ends.items():
            num_tokens, num_reasoning = self._answers[index].num_tokens, 0
            if index == 0 and usage.completion_tokens:
                num_tokens = max(0, usage.completion_tokens - others)
                num_reasoning = usage.num_reasoning
            self._give(
                structs.replace(
                    end,
                    num_prompt=usage.prompt_tokens,
                    num_cached=usage.num_cached,
                    num_tokens=num_tokens,
                    num_reasoning_tokens=num_reasoning,
                )
            )

    def _choice(self, choice: _Choice) -> None:
        if not 0 <= choice.index < len(self._answers) or choice.index in self._ends:
            raise BrokenStream(f"an event of choice {choice.index}, which is not there")
        if choice.index in self._looped:
            return
        answer, told, message = self._answers[choice.index], Told(), choice.delta or Message()
        self.has_news = True
        answer.read(message, told)
        reason, detail, matched = None, choice.stop_reason, choice.matched_stop
        if detail is None and (isinstance(matched, str) or matched in self._stop_ids):
            detail = matched  # the end of an answer is one, too, and is silent
        if choice.finish_reason is not None:
            reason = _REASONS.get(choice.finish_reason)
            if reason is None:
                raise BrokenStream(f"the answer ended for the reason {choice.finish_reason}")
        elif answer.loops(message):
            reason = "repetition"
            self._looped.add(choice.index)
        if reason is not None:
            answer.flush(told)
            if reason == "stop" and answer.num_calls and detail is None:
                reason = "tool_calls"
        delta = Delta(
            index=choice.index,
            text="".join(told.text),
            reasoning="".join(told.reasoning),
            tool_calls=tuple(told.calls),
            finish_reason=reason,
            stop_reason=detail,
            num_tokens=answer.num_tokens,
            has_stray_markup=answer.has_stray_markup or choice.has_stray_markup,
        )
        if reason is not None and choice.index not in self._looped:
            self._ends[choice.index] = delta
        elif not delta.is_empty:
            self._give(delta)
