"""Compares parsed conversations with what was sent, and errors with the field they must name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import RequestError
from fathom.text.messages import Message, Tool, ToolCall, parse_messages, parse_tools

USER = {"role": "user", "content": "hi"}


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse_messages([{"role": "user", "content": parts}]) == (
        Message(role="user", content="ab"),
    )


def test_an_answer_as_a_client_library_echoes_it() -> None:
    function = {"name": "f", "arguments": '{"a": 1}', "parsed_arguments": {"a": 1}}
    echoed = {
        "role": "assistant",
        "content": None,
        "parsed": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "reasoning_content": "because",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "c", "name": "f", "content": "2"}
    assert parse_messages([USER, echoed, result])[1:] == (
        Message(role="assistant", reasoning="because", tool_calls=(ToolCall("f", '{"a": 1}'),)),
        Message(role="tool", content="2"),
    )


def test_arguments_may_be_an_object_and_no_calls_an_empty_list() -> None:
    call = {"function": {"name": "f", "arguments": {"ä": 1}}}
    first = {"role": "assistant", "tool_calls": [call]}
    second = {"role": "assistant", "content": "x", "tool_calls": []}
    assert parse_messages([first, second]) == (
        Message(role="assistant", tool_calls=(ToolCall("f", '{"ä": 1}'),)),
        Message(role="assistant", content="x"),
    )


def test_tools() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
    assert parse_tools(None) == ()
    assert parse_tools([{"type": "function", "function": function}]) == (
        Tool(name="f", description="d", parameters={"type": "object"}),
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ("hi", "messages"),
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([USER, {"role": "user"}], "messages[1].content"),
        ([{"role": "tool", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
        ),
        ([USER | {"weight": 1}], "messages[0].weight"),
        ([USER | {"tool_calls": []}], "messages[0].tool_calls"),
        ([USER | {"name": 3}], "messages[0].name"),
        ([{"role": "assistant", "refusal": "no"}], "messages[0].refusal"),
        ([{"role": "assistant", "prefix": "yes"}], "messages[0].prefix"),
        ([{"role": "assistant", "content": "", "prefix": True}, USER], "messages[0].prefix"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "tool_calls": [{"type": "x"}]}],
            "messages[0].tool_calls[0].type",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}],
            "messages[0].tool_calls[0].function.name",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            [{"role": "assistant", "prefix": True, "tool_calls": [{"function": {"name": "f"}}]}],
            "messages[0].prefix",
        ),
    ],
)
def test_wrong_messages_are_named(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_messages(messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ([{"type": "retrieval"}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        (
            [{"type": "function", "function": {"name": "a", "parameters": 3}}],
            "tools[0].function.parameters",
        ),
        (
            [{"type": "function", "function": {"name": "a", "description": 3}}],
            "tools[0].function.description",
        ),
        ([{"type": "function", "function": {"name": "a"}, "typ": 1}], "tools[0].typ"),
        (
            [{"type": "function", "function": {"name": "a", "params": {}}}],
            "tools[0].function.params",
        ),
        (
            [{"type": "function", "function": {"name": "a", "strict": 1}}],
            "tools[0].function.strict",
        ),
    ],
)
def test_wrong_tools_are_named(tools: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_tools(tools)
    assert caught.value.param == param


SCRAP = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.just([]), st.just({})
)
NAMES = st.sampled_from(
    ["role", "content", "name", "tool_calls", "prefix", "type", "text", "function", "arguments"]
)
VALUES = st.recursive(
    st.one_of(SCRAP, st.sampled_from(["user", "assistant", "tool", "text", "function"])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(raw=st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_conversation_or_a_named_error(raw: Any) -> None:
    for parse, param in ((parse_messages, "messages"), (parse_tools, "tools")):
        try:
            parse(raw)
        except RequestError as error:
            assert str(error.param).startswith(param)  # noqa: PT017  # either outcome is right


CALL: Any = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# What holds an unknown field, and where that is.
UNKNOWN: list[tuple[Any, str]] = [
    ({**USER, "zzz": 1}, "messages[0].zzz"),
    ({"role": "user", "content": [{"type": "text", "text": "hi", "zzz": None}]},
     "messages[0].content[0].zzz"),
    ({"role": "assistant", "tool_calls": [{**CALL, "zzz": 1}]}, "messages[0].tool_calls[0].zzz"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {**CALL["function"], "zzz": 1}}]},
     "messages[0].tool_calls[0].function.zzz"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "param"), UNKNOWN)
def test_unknown_fields_are_refused_or_told(message: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_messages([message])
    assert caught.value.param == param
    told: list[str] = []
    raw = copy.deepcopy([message])
    assert parse_messages(raw, told=told) == parse_messages(raw)
    assert [text.split()[0] for text in told] == [param]


def test_images_are_refused_by_name() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(RequestError, match=r"found: 'image_url'; wanted: 'text'"):
        parse_messages([{"role": "user", "content": [part]}])
