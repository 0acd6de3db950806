"""The form of an answer and its tool calls, under every name by which clients ask for them."""

from __future__ import annotations

from typing import Any

from msgspec import to_builtins

from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.server.forms import ToolChoice, check_fits_type, one_form, schema_of, sglang_forms
from fathom.server.openai.schema import ChatRequest, NamedTool, ResponseFormat, Sampling

_SCHEMA_FIELD = "response_format.json_schema.schema"
_BELONGS = {"json_schema": ["json_schema"], "structural_tag": ["structures", "triggers"]}


def form_of(request: Sampling) -> StructuredOutputs | None:
    """The form that is asked for. Raises: RequestError for two of them, and for a wrong one."""
    structured, asked = request.structured_outputs, request.response_format
    is_schema = asked is not None and asked.type == "json_schema"
    given = None if structured is None else to_builtins(structured).items()
    return one_form(
        {
            _SCHEMA_FIELD if is_schema else "response_format": _of_response_format(asked),
            **sglang_forms(request),
            "structured_outputs": given and {k: v for k, v in given if v is not None},
        }
    )


def _of_response_format(asked: ResponseFormat | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    check_fits_type(asked, "response_format", _BELONGS)
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"json_object": True}
    if asked.type == "structural_tag":
        return {"structural_tag": {"structures": asked.structures, "triggers": asked.triggers}}
    return schema_of(asked.json_schema and asked.json_schema.schema, _SCHEMA_FIELD)


def tool_choice(request: ChatRequest) -> ToolChoice:
    """Which calls are wanted. Raises: RequestError where there are no tools to choose from."""
    choice = request.tool_choice
    if choice not in (None, "none") and not request.tools:
        raise RequestError("tool_choice needs tools", param="tool_choice")
    named = choice.function.name if isinstance(choice, NamedTool) else None
    return ToolChoice(
        must_call=named is not None or choice == "required",
        named=named,
        is_single=not request.parallel_tool_calls,
        name_field="tool_choice.function.name",
    )
