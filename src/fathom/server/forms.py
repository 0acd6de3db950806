"""The form of an answer and the calls that it may make, whatever a dialect calls them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.core.types import StructuredOutputs
from fathom.errors import RequestError
from fathom.text.chat import ChatTemplate
from fathom.text.grammar.asked import ToolRule, ToolRules


def one_form(asked: Mapping[str, Mapping[str, Any] | None]) -> StructuredOutputs | None:
    """The form that is asked for: by field, what it gives `StructuredOutputs`; None: not sent.

    Raises: RequestError for two of them, and for a wrong one.
    """
    given = {name: form for name, form in asked.items() if form is not None}
    if len(given) > 1:
        raise RequestError(
            "the request asks for two forms of answer",
            param=next(reversed(given)),
            found=", ".join(given),
            fix="send one of them",
        )
    return next((StructuredOutputs(**form, param=name) for name, form in given.items()), None)


def if_given(name: str, value: object) -> dict[str, Any] | None:
    """A form by its name in `StructuredOutputs`, where a value for it was sent."""
    return None if value is None else {name: value}


def sglang_forms(source: Any, prefix: str = "") -> dict[str, dict[str, Any] | None]:
    """The forms that stand in `source` under SGLang's names, `prefix` before them."""
    names = ("json_schema", "regex", "ebnf", "structural_tag")
    forms = ("json", "regex", "grammar", "structural_tag")
    return {
        f"{prefix}{name}": if_given(form, getattr(source, name))
        for name, form in zip(names, forms, strict=True)
    }


def schema_of(schema: object, field: str) -> dict[str, Any]:
    """The form of a JSON schema. Raises: RequestError where `field` is missing."""
    if schema is None:
        raise RequestError(
            f"{field} is missing", param=field, code="missing_required_parameter", wanted="a schema"
        )
    return {"json": schema}


def check_fits_type(asked: Any, field: str, belongs: Mapping[str, Sequence[str]]) -> None:
    """Raises: RequestError for a field that is given and does not belong to the type of `asked`."""
    for name in asked.__struct_fields__:
        fits = name == "type" or name in belongs.get(asked.type, ())
        if not fits and getattr(asked, name) is not None:
            raise RequestError(
                f"{field}.{name} does not go with type {asked.type}",
                param=f"{field}.{name}",
                code="unsupported_value",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Which calls are wanted. `named`: the tool that must be called; `is_single`: one call at most.

    The fields are what errors name: of the choice, of the name in it, of a tool's schema.
    """

    must_call: bool = False
    named: str | None = None
    is_single: bool = False
    field: str = "tool_choice"
    name_field: str = "tool_choice.name"
    schema_field: str = "tools[{}].function.parameters"

    def rules(
        self, tools: Sequence[Mapping[str, Any]] | None, template: ChatTemplate
    ) -> ToolRules | None:
        """What calls may be made of `tools`, checked and in OpenAI's form; None without tools.

        Raises: RequestError where there is none to choose, or none of that name.
        """
        functions = [tool["function"] for tool in tools or ()]
        names = [function["name"] for function in functions]
        if self.must_call and not names:
            raise RequestError(f"{self.field} needs tools", param=self.field)
        if self.named is not None and self.named not in names:
            raise RequestError(
                f"{self.field} names no tool of the request",
                param=self.name_field,
                found=repr(self.named)[:200],
                wanted=", ".join(names)[:500],
            )
        if not names or template.tool_format is None:
            return None
        return ToolRules(
            tools=tuple(
                _rule(function, self.schema_field.format(index))
                for index, function in enumerate(functions)
                if self.named in (None, function["name"])
            ),
            format=template.tool_format,
            must_call=self.must_call,
            is_single=self.is_single or self.named is not None,
        )


def _rule(function: Mapping[str, Any], field: str) -> ToolRule:
    schema = function.get("parameters")
    return ToolRule(
        name=function["name"],
        schema=None if schema is None else json.dumps(schema),
        is_strict=bool(function.get("strict")),
        param=field,
    )
