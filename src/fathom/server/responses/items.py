"""From items to the one form of a conversation."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, to_builtins

from fathom.core.types import StructuredOutputs
from fathom.errors import NotFoundError
from fathom.server.forms import ToolChoice, check_fits_type, one_form, schema_of
from fathom.server.job import Ask
from fathom.server.responses.schema import (
    ITEMS,
    CallItem,
    CountRequest,
    MessageItem,
    NamedTool,
    Part,
    ReasoningItem,
    ResultItem,
)
from fathom.server.responses.store import ResponseStore


def read_items(ask: Ask, request: CountRequest, name: str) -> list[Struct]:
    """The items of a request, checked; those without an id get one that begins with `name`.

    Raises: RequestError naming the field at fault.
    """
    if isinstance(request.input, str):
        raws = [{"type": "message", "role": "user", "content": request.input}]
        raws = raws if request.input else []
    else:
        raws = request.input
    return [
        ask.part(
            {**raw, "id": f"item_{name}_{index}"} if raw.get("id") in (None, "") else raw,
            ITEMS,
            "items",
            f"input[{index}]",
            default="message",
        )
        for index, raw in enumerate(raws)
    ]


def earlier_items(
    ask: Ask, request: CountRequest, store: ResponseStore, tenant: str
) -> list[Struct]:
    """The items of the answers that the request goes on from.

    Raises: NotFoundError where one of them is no more.
    """
    if request.previous_response_id is None:
        return []
    chain = store.chain(tenant, request.previous_response_id)
    if chain is None:
        raise NotFoundError(
            "the previous response, or one before it, is not here",
            param="previous_response_id",
            code="previous_response_not_found",
            found=request.previous_response_id[:100],
            fix="send the whole conversation as input",
        )
    raws = [raw for kept in chain for raw in (*kept.items, *kept.response["output"])]
    where = "previous_response_id"
    return [ask.part(raw, ITEMS, "items", where) for raw in raws]


def plain(item: Struct) -> dict[str, Any]:
    """The item as it was sent."""
    return {name: value for name, value in to_builtins(item).items() if value is not None}


def messages_of(instructions: str | None, items: list[Struct]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's older form. What one answer consisted of is one message."""
    told: list[dict[str, Any]] = []
    if instructions:
        told.append({"role": "system", "content": instructions})
    for item in items:
        if isinstance(item, ResultItem):
            output = _text(item.output)
            told.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            told.append({"role": item.role, "content": _text(item.content)})
        else:
            if not told or told[-1]["role"] != "assistant":
                told.append({"role": "assistant", "content": ""})
            _add(told[-1], item)
    return told


def tools_of(request: CountRequest) -> list[dict[str, Any]] | None:
    """The tools that the model is shown, in OpenAI's older form."""
    if not request.tools or request.tool_choice == "none":
        return None
    return [
        {"type": "function", "function": {k: v for k, v in to_builtins(t).items() if k != "type"}}
        for t in request.tools
    ]


def tool_choice_of(request: CountRequest) -> ToolChoice:
    """Which calls are wanted."""
    choice = request.tool_choice
    named = choice.name if isinstance(choice, NamedTool) else None
    return ToolChoice(
        must_call=named is not None or choice == "required",
        named=named,
        is_single=not request.parallel_tool_calls,
        schema_field="tools[{}].parameters",
    )


def form_of(request: CountRequest) -> StructuredOutputs | None:
    """The form of the answer. Raises: RequestError."""
    asked, field = request.text.format if request.text else None, "text.format.schema"
    if asked is None:
        return None
    fields = ("name", "description", "schema", "strict")
    check_fits_type(asked, "text.format", {"json_schema": fields})
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return one_form({"text.format": {"json_object": True}})
    return one_form({field: schema_of(asked.schema, field)})


def format_of(request: CountRequest) -> dict[str, Any]:
    """`text.format` as answers say it back."""
    asked = request.text and request.text.format
    return to_builtins(asked) if asked else {"type": "text"}


def _add(message: dict[str, Any], item: Struct) -> None:
    """Put a part of an answer to the others."""
    if isinstance(item, MessageItem):
        message["content"] += _text(item.content)
    elif isinstance(item, ReasoningItem):
        reasoning = message.get("reasoning_content", "") + _text(item.content or [])
        message["reasoning_content"] = reasoning
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        calls = message.setdefault("tool_calls", [])
        calls.append({"id": item.call_id, "type": "function", "function": function})


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
