"""A conversation in OpenAI's form, checked: every field is honoured or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fathom.errors import RequestError
from fathom.text.results import in_call_order

Role = Literal["system", "user", "assistant", "tool"]

# `parsed` and `parsed_arguments` are what OpenAI's client made of an earlier answer: it sends them
# back beside the text.
FIELDS: Mapping[str, frozenset[str]] = {
    "system": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset(
        {
            *("role", "content", "name", "tool_calls", "reasoning_content", "reasoning"),
            *("prefix", "parsed"),
        }
    ),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
ALIASES = {"developer": "system"}
PART_FIELDS = frozenset({"type", "text"})
# `index` is in calls that a client put together from a stream; what `arguments_flaw` said of an
# earlier answer the model is not told.
CALL_FIELDS = frozenset({"id", "type", "function", "index", "arguments_flaw"})
CALLED_FIELDS = frozenset({"name", "arguments", "parsed_arguments"})
_TOOL_FIELDS = frozenset({"type", "function"})
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
# Client libraries echo these in an assistant's message; they say nothing when empty.
_EMPTY_ONLY = frozenset({"refusal", "annotations", "audio", "function_call"})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier answer made; `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `reasoning` counts only in a final message that is to be continued; `prefix` says
    that it is. A participant's `name` is accepted: DeepSeek's formats do not show it to the model.
    """

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    prefix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call. `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, object]


def parse_messages(
    raw: object, param: str = "messages", told: list[str] | None = None
) -> tuple[Message, ...]:
    """The conversation, results of tools in the order of their calls. `told`: where given, unknown
    fields are taken out of `raw` and told here.

    Raises: RequestError naming the field at fault.
    """
    items = _list(raw, param)
    if not items:
        raise _wrong(param, "an empty list", "at least one message")
    messages = tuple(_message(item, f"{param}[{index}]", told) for index, item in enumerate(items))
    for index, message in enumerate(messages[:-1]):
        if message.prefix:
            raise _wrong(f"{param}[{index}].prefix", "true", "true on the last message only")
    return tuple(messages[index] for index in in_call_order(items, param))


def parse_tools(
    raw: object, param: str = "tools", told: list[str] | None = None
) -> tuple[Tool, ...]:
    """The tools offered; none for None. `told` as for messages.

    Raises: RequestError naming the field at fault.
    """
    items = () if raw is None else _list(raw, param)
    return tuple(_tool(item, f"{param}[{index}]", told) for index, item in enumerate(items))


def _message(raw: object, param: str, told: list[str] | None) -> Message:
    fields = _object(raw, param)
    role = fields.get("role")
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in FIELDS:
        wanted = "system, developer, user, assistant or tool"
        raise _wrong(f"{param}.role", repr(fields.get("role")), wanted)
    _only(fields, FIELDS[role], param, f"a {role} message", told)
    for name in ("name", "tool_call_id"):
        _string(fields.get(name), f"{param}.{name}")
    calls = fields.get("tool_calls")
    message = Message(
        role=role,  # type: ignore[arg-type]  # one of FIELDS' keys
        content=_content(fields.get("content"), f"{param}.content", told),
        reasoning=_string(fields.get("reasoning_content"), f"{param}.reasoning_content")
        or _string(fields.get("reasoning"), f"{param}.reasoning"),
        tool_calls=() if calls is None else _calls(calls, f"{param}.tool_calls", told),
        prefix=_boolean(fields.get("prefix"), f"{param}.prefix"),
    )
    if role != "assistant" and fields.get("content") is None:
        raise _wrong(f"{param}.content", "nothing", "a string or a list of text parts")
    if message.prefix and message.tool_calls:
        raise _wrong(f"{param}.prefix", "true with tool_calls", "a message of text to continue")
    return message


def _content(raw: object, param: str, told: list[str] | None) -> str:
    """A string, or the parts of a list of them joined."""
    if raw is None or isinstance(raw, str):
        return raw or ""
    if not isinstance(raw, Sequence):
        raise _wrong(param, type(raw).__name__, "a string or a list of text parts")
    parts = []
    for index, item in enumerate(raw):
        part = _object(item, f"{param}[{index}]")
        kind = part.get("type")
        if kind != "text":
            raise RequestError(
                f"{param}[{index}] is a part of a kind that this model cannot read",
                param=f"{param}[{index}].type",
                code="unsupported_content",
                found=repr(kind),
                wanted="'text'",
                fix="describe it in words: DeepSeek's language models read text only",
            )
        if not isinstance(part.get("text"), str):
            raise _wrong(f"{param}[{index}].text", type(part.get("text")).__name__, "a string")
        _only(part, PART_FIELDS, f"{param}[{index}]", "a part", told)
        parts.append(str(part["text"]))
    return "".join(parts)


def _calls(raw: object, param: str, told: list[str] | None) -> tuple[ToolCall, ...]:
    calls = []
    for index, item in enumerate(_list(raw, param)):
        at = f"{param}[{index}]"
        call = _object(item, at)
        if call.get("type") not in (None, "function"):
            raise _wrong(f"{at}.type", repr(call.get("type")), "'function'")
        _only(call, CALL_FIELDS, at, "a call", told)
        _string(call.get("id"), f"{at}.id")
        function = _object(call.get("function"), f"{at}.function")
        _only(function, CALLED_FIELDS, f"{at}.function", "a function that was called", told)
        arguments = function.get("arguments", "")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append(
            ToolCall(
                name=_name(function.get("name"), f"{at}.function.name"),
                arguments=_string(arguments, f"{at}.function.arguments"),
            )
        )
    return tuple(calls)


def _tool(raw: object, param: str, told: list[str] | None) -> Tool:
    fields = _object(raw, param)
    if fields.get("type") != "function":
        raise _wrong(f"{param}.type", repr(fields.get("type")), "'function'")
    _only(fields, _TOOL_FIELDS, param, "a tool", told)
    function = _object(fields.get("function"), f"{param}.function")
    _only(function, _FUNCTION_FIELDS, f"{param}.function", "a function", told)
    _boolean(function.get("strict"), f"{param}.function.strict")
    parameters = function.get("parameters")
    return Tool(
        name=_name(function.get("name"), f"{param}.function.name"),
        description=_string(function.get("description"), f"{param}.function.description"),
        parameters={}
        if parameters is None
        else _object(parameters, f"{param}.function.parameters"),
    )


def _only(
    raw: Mapping[str, object], known: frozenset[str], param: str, what: str, told: list[str] | None
) -> None:
    """Raises: RequestError for a field that is not `known`, unless it is `told`."""
    unknown = [name for name in raw if name not in known]
    for name in unknown:
        if name in _EMPTY_ONLY and not raw[name]:
            continue
        error = RequestError(
            f"{param}.{name} is not a field of {what}",
            param=f"{param}.{name}",
            code="unknown_parameter",
            wanted=", ".join(sorted(known)),
        )
        if told is None or not isinstance(raw, dict):
            raise error
        del raw[name]
        told.append(str(error))


def _name(raw: object, param: str) -> str:
    text = _string(raw, param)
    if not text or any(char.isspace() for char in text):
        raise _wrong(param, repr(raw), "a name without white space")
    return text


def _string(raw: object, param: str) -> str:
    if raw is None or isinstance(raw, str):
        return raw or ""
    raise _wrong(param, type(raw).__name__, "a string")


def _boolean(raw: object, param: str) -> bool:
    if raw is None or isinstance(raw, bool):
        return bool(raw)
    raise _wrong(param, repr(raw), "true or false")


def _list(raw: object, param: str) -> Sequence[object]:
    if isinstance(raw, Sequence) and not isinstance(raw, str | bytes):
        return raw
    raise _wrong(param, type(raw).__name__, "a list")


def _object(raw: object, param: str) -> Mapping[str, object]:
    if isinstance(raw, Mapping):
        return raw
    raise _wrong(param, type(raw).__name__, "an object")


def _wrong(param: str, found: str, wanted: str) -> RequestError:
    return RequestError(f"{param} is wrong", param=param, found=found, wanted=wanted)
