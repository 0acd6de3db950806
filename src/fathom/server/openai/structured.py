"""The form of an answer and its tool calls, under every name by which clients ask for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec import to_builtins

from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.server.openai.schema import ChatRequest, NamedTool, Sampling, Tool
from fathom.text.chat import ChatTemplate
from fathom.text.grammar.asked import ToolRule, ToolRules


def form_of(request: Sampling) -> StructuredOutputs | None:
    """The form that is asked for. Raises: RequestError for two of them, and for a wrong one."""
    asked: dict[str, Mapping[str, Any] | None] = {
        "response_format": _of_response_format(request),
        "json_schema": _if_given("json", request.json_schema),
        "regex": _if_given("regex", request.regex),
        "ebnf": _if_given("grammar", request.ebnf),
        "structural_tag": _if_given("structural_tag", request.structural_tag),
    }
    if request.structured_outputs is not None:
        given = to_builtins(request.structured_outputs)
        asked["structured_outputs"] = {k: v for k, v in given.items() if v is not None}
    fields = {name: form for name, form in asked.items() if form is not None}
    if len(fields) > 1:
        raise RequestError(
            "the request asks for two forms of answer",
            param=next(reversed(fields)),
            found=", ".join(fields),
            fix="send one of them",
        )
    for name, form in fields.items():
        is_schema = name == "response_format" and "json" in form
        return StructuredOutputs(**form, param=f"{name}.json_schema.schema" if is_schema else name)
    return None


def _if_given(name: str, value: object) -> dict[str, Any] | None:
    return None if value is None else {name: value}


def _of_response_format(request: Sampling) -> dict[str, Any] | None:
    asked = request.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"json_object": True}
    if asked.type == "structural_tag":
        return {"structural_tag": {"structures": asked.structures, "triggers": asked.triggers}}
    if asked.json_schema is None or asked.json_schema.schema is None:
        raise RequestError(
            "response_format of type json_schema has no schema",
            param="response_format.json_schema.schema",
            code="missing_required_parameter",
        )
    return {"json": asked.json_schema.schema}


def check_tool_choice(request: ChatRequest) -> None:
    """Raises: RequestError where a choice of tools has none to choose from."""
    choice, tools = request.tool_choice, request.tools or []
    if choice not in (None, "none") and not tools:
        raise RequestError("tool_choice needs tools", param="tool_choice")
    if isinstance(choice, NamedTool):
        names = [tool.function.name for tool in tools]
        if choice.function.name not in names:
            raise RequestError(
                "tool_choice names no tool of the request",
                param="tool_choice.function.name",
                found=repr(choice.function.name)[:200],
                wanted=", ".join(names)[:500],
            )


def tool_rules(request: ChatRequest, template: ChatTemplate) -> ToolRules | None:
    """What calls may be made; None where no tool is offered."""
    choice = request.tool_choice
    if choice == "none" or not request.tools or template.tool_format is None:
        return None
    named = choice.function.name if isinstance(choice, NamedTool) else None
    return ToolRules(
        tools=tuple(
            _rule(tool, index)
            for index, tool in enumerate(request.tools)
            if named in (None, tool.function.name)
        ),
        format=template.tool_format,
        must_call=named is not None or choice == "required",
        is_single=named is not None or not request.parallel_tool_calls,
    )


def _rule(tool: Tool, index: int) -> ToolRule:
    function = tool.function
    return ToolRule(
        name=function.name,
        schema=None if function.parameters is None else json.dumps(function.parameters),
        is_strict=bool(function.strict),
        param=f"tools[{index}].function.parameters",
    )
