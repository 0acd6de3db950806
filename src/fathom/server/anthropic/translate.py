"""From Anthropic's messages, blocks and tools to the one form of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import Struct

from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.server.anthropic.schema import (
    CountRequest,
    RedactedBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from fathom.server.forms import ToolChoice, if_given, one_form
from fathom.server.job import Ask
from fathom.server.thinking import Thinking, one_meaning
from fathom.text.chat import ChatTemplate

# An agent writes this line, with a checksum of the request in it, in front of its system prompt.
# It is for who bills, not for the model, and no two requests would share a prefix behind it.
BILLING_LINE = "x-anthropic-billing-header:"
_BETWEEN = "\n\n"
_SCHEMA_FIELD = "tools[{}].input_schema"

KINDS: dict[str, dict[str, type[Struct]]] = {
    "system": {"text": TextBlock},
    "user": {"text": TextBlock, "tool_result": ToolResultBlock},
    "assistant": {
        "text": TextBlock,
        "thinking": ThinkingBlock,
        "redacted_thinking": RedactedBlock,
        "tool_use": ToolUseBlock,
    },
}
StructT = TypeVar("StructT", bound=Struct)


def messages_of(ask: Ask, request: CountRequest) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form. Raises: RequestError naming the field at fault."""
    told: list[dict[str, Any]] = []
    system = _without_billing(_blocks(ask, request.system or "", "system", "system"))
    if system:
        told.append({"role": "system", "content": _text(system)})
    for index, message in enumerate(request.messages):
        blocks = _blocks(ask, message.content, message.role, f"messages[{index}].content")
        if message.role == "assistant":
            told.append(_assistant(blocks))
        else:
            told += _results(ask, blocks, f"messages[{index}].content")
            texts = _of(blocks, TextBlock)
            if texts or not blocks:
                told.append({"role": message.role, "content": _text(texts)})
    if told and told[-1].get("tool_calls"):
        raise RequestError(
            "the last message calls tools, so there is nothing to go on with",
            param="messages",
            fix="send the tools' results",
        )
    return _joined(told)


def has_billing_line(request: CountRequest) -> bool:
    """Whether `messages_of` leaves out a line of the system prompt that changes every time."""
    system = request.system or ""
    texts = [system] if isinstance(system, str) else [block.get("text") for block in system]
    return any(isinstance(text, str) and text.startswith(BILLING_LINE) for text in texts)


def tools_of(request: CountRequest) -> list[dict[str, Any]] | None:
    """The tools that the model is shown, in OpenAI's form."""
    if not request.tools or (request.tool_choice and request.tool_choice.type == "none"):
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.input_schema,
                "strict": tool.strict,
            },
        }
        for tool in request.tools
    ]


def tool_choice_of(request: CountRequest) -> ToolChoice:
    """Which calls are wanted. Raises: RequestError where the name of one is missing, or said in
    vain."""
    choice = request.tool_choice
    if choice is None:
        return ToolChoice(schema_field=_SCHEMA_FIELD)
    if (choice.name is None) == (choice.type == "tool"):
        raise RequestError(
            "tool_choice is not valid",
            param="tool_choice.name",
            found=f"type {choice.type}",
            wanted="a name with type tool, and with no other",
        )
    return ToolChoice(
        must_call=choice.type in ("any", "tool"),
        named=choice.name,
        is_single=choice.disable_parallel_tool_use,
        schema_field=_SCHEMA_FIELD,
    )


def form_of(request: CountRequest) -> StructuredOutputs | None:
    """The form of the answer, under its name or the older one. Raises: RequestError."""
    new = request.output_config.format if request.output_config else None
    old = request.output_format
    return one_form(
        {
            "output_config.format.schema": if_given("json", new and new.schema),
            "output_format.schema": if_given("json", old and old.schema),
        }
    )


def thinking_of(request: CountRequest, template: ChatTemplate) -> Thinking:
    """Whether to think. Adaptive leaves it to the model, and means yes to one that can do both.

    Raises: RequestError.
    """
    asked = request.thinking
    if asked is None:
        return Thinking()
    is_on: bool | None = asked.type == "enabled"
    if asked.type == "adaptive":
        is_on = True if template.reasons == "asked" else None
    return one_meaning({"thinking.type": is_on}, {"thinking.budget_tokens": asked.budget_tokens})


def tell_of_unheeded(ask: Ask, request: CountRequest) -> None:
    """Warn of what agents always send and what changes nothing here. Raises: RequestError for
    edits of the context that would change the prompt."""
    if request.output_config and request.output_config.effort:
        ask.warnings.append("output_config.effort: the models have no degrees of effort")
    if request.thinking and request.thinking.display == "summarized":
        ask.warnings.append("thinking.display: reasoning is given as it is, not summarized")
    if request.context_management and request.context_management.edits:
        if {edit.type for edit in request.context_management.edits} != {"clear_thinking_20251015"}:
            raise RequestError(
                "context_management is not supported: conversations are not edited here",
                param="context_management",
                code="unsupported_parameter",
                fix="leave out what the model is not to see",
            )
        ask.warnings.append(
            "context_management: the chat template leaves out earlier reasoning by itself"
        )
    if has_billing_line(request):
        ask.warnings.append(
            f"system: its line {BILLING_LINE} was left out, for it changes with every request and "
            "would spoil the prefix cache"
        )


def _blocks(ask: Ask, content: str | list[dict[str, Any]], role: str, where: str) -> list[Struct]:
    if isinstance(content, str):
        return [TextBlock(type="text", text=content)] if content else []
    fix = "describe it in words: DeepSeek's language models read text only"
    return [
        ask.part(raw, KINDS[role], "blocks", f"{where}[{index}]", noun="a block", fix=fix)
        for index, raw in enumerate(content)
    ]


def _without_billing(blocks: list[Struct]) -> list[Struct]:
    kept: list[Struct] = []
    for block in blocks:
        text = getattr(block, "text", "")
        if text.startswith(BILLING_LINE):
            text = text.partition("\n")[2].lstrip("\n")
        if text:
            kept.append(TextBlock(type="text", text=text))
    return kept


def _assistant(blocks: Sequence[Struct]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(block.text for block in _of(blocks, TextBlock)),
        "reasoning_content": "".join(block.thinking for block in _of(blocks, ThinkingBlock)),
    }
    calls = _of(blocks, ToolUseBlock)
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.input},
            }
            for call in calls
        ]
    return message


def _results(ask: Ask, blocks: Sequence[Struct], where: str) -> list[dict[str, Any]]:
    """A message for each result. The templates have no place for `is_error`, so a word says it."""
    told = []
    for index, block in enumerate(blocks):
        if not isinstance(block, ToolResultBlock):
            continue
        text = _text(_blocks(ask, block.content, "system", f"{where}[{index}].content"))
        if block.is_error:
            text = f"Error: {text}"
        told.append({"role": "tool", "content": text, "tool_call_id": block.tool_use_id})
    return told


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of one speaker in a row as one turn, as the API says."""
    told: list[dict[str, Any]] = []
    for message in messages:
        last = told[-1] if told else None
        is_same = last is not None and last["role"] == message["role"] != "tool"
        if last is None or not is_same:
            told.append(message)
        else:
            between = "" if message["role"] == "assistant" else _BETWEEN
            last["content"] += between + message["content"]
            if "reasoning_content" in message:
                last["reasoning_content"] += message["reasoning_content"]
            if "tool_calls" in message:
                last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
    return told


def _of(blocks: Sequence[Struct], kind: type[StructT]) -> list[StructT]:
    return [block for block in blocks if isinstance(block, kind)]


def _text(blocks: Sequence[Struct]) -> str:
    return _BETWEEN.join(block.text for block in _of(blocks, TextBlock))
