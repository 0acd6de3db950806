"""A conversation in OpenAI's form, checked: every field is honoured or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fathom.errors import RequestError

Role = Literal["system", "user", "assistant", "tool"]

FIELDS: Mapping[str, frozenset[str]] = {
    "system": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset(
        {"role", "content", "name", "tool_calls", "reasoning_content", "reasoning", "prefix"}
    ),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
ALIASES = {"developer": "system"}
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


def parse_messages(raw: object, param: str = "messages") -> tuple[Message, ...]:
    """The conversation. Raises: RequestError naming the field at fault."""
    items = _list(raw, param)
    if not items:
        raise _wrong(param, "an empty list", "at least one message")
    messages = tuple(_message(item, f"{param}[{index}]") for index, item in enumerate(items))
    for index, message in enumerate(messages[:-1]):
        if message.prefix:
            raise _wrong(f"{param}[{index}].prefix", "true", "true on the last message only")
    return messages


def parse_tools(raw: object, param: str = "tools") -> tuple[Tool, ...]:
    """The tools offered; none for None. Raises: RequestError naming the field at fault."""
    if raw is None:
        return ()
    return tuple(_tool(item, f"{param}[{index}]") for index, item in enumerate(_list(raw, param)))


def _message(raw: object, param: str) -> Message:
    fields = _object(raw, param)
    role = fields.get("role")
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in FIELDS:
        wanted = "system, developer, user, assistant or tool"
        raise _wrong(f"{param}.role", repr(fields.get("role")), wanted)
    named = [name for name, value in fields.items() if value or name not in _EMPTY_ONLY]
    _only(named, FIELDS[role], param, f"a {role} message")
    for name in ("name", "tool_call_id"):
        _string(fields.get(name), f"{param}.{name}")
    calls = fields.get("tool_calls")
    message = Message(
        role=role,  # type: ignore[arg-type]  # one of FIELDS' keys
        content=_content(fields.get("content"), f"{param}.content"),
        reasoning=_string(fields.get("reasoning_content"), f"{param}.reasoning_content")
        or _string(fields.get("reasoning"), f"{param}.reasoning"),
        tool_calls=() if calls is None else _calls(calls, f"{param}.tool_calls"),
        prefix=_boolean(fields.get("prefix"), f"{param}.prefix"),
    )
    if role != "assistant" and fields.get("content") is None:
        raise _wrong(f"{param}.content", "nothing", "a string or a list of text parts")
    if message.prefix and message.tool_calls:
        raise _wrong(f"{param}.prefix", "true with tool_calls", "a message of text to continue")
    return message


def _content(raw: object, param: str) -> str:
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
        parts.append(str(part["text"]))
    return "".join(parts)


def _calls(raw: object, param: str) -> tuple[ToolCall, ...]:
    calls = []
    for index, item in enumerate(_list(raw, param)):
        at = f"{param}[{index}]"
        call = _object(item, at)
        if call.get("type", "function") != "function":
            raise _wrong(f"{at}.type", repr(call.get("type")), "'function'")
        function = _object(call.get("function"), f"{at}.function")
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


def _tool(raw: object, param: str) -> Tool:
    fields = _object(raw, param)
    if fields.get("type") != "function":
        raise _wrong(f"{param}.type", repr(fields.get("type")), "'function'")
    _only(fields, _TOOL_FIELDS, param, "a tool")
    function = _object(fields.get("function"), f"{param}.function")
    _only(function, _FUNCTION_FIELDS, f"{param}.function", "a function")
    _boolean(function.get("strict"), f"{param}.function.strict")
    parameters = function.get("parameters")
    return Tool(
        name=_name(function.get("name"), f"{param}.function.name"),
        description=_string(function.get("description"), f"{param}.function.description"),
        parameters={}
        if parameters is None
        else _object(parameters, f"{param}.function.parameters"),
    )


def _only(names: Iterable[str], known: frozenset[str], param: str, what: str) -> None:
    """Raises: RequestError for a name that is not `known`."""
    for name in names:
        if name not in known:
            raise RequestError(
                f"{param}.{name} is not a field of {what}",
                param=f"{param}.{name}",
                code="unknown_parameter",
                wanted=", ".join(sorted(known)),
            )


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
