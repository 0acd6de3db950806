"""Compares the order of tools' results with that of their calls, and refusals with OpenAI's,
DeepSeek's and Anthropic's APIs, which take no result without its call."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import RequestError
from fathom.text.chat import render_chat
from fathom.text.messages import parse_messages
from fathom.text.templates import TEMPLATES

USER = {"role": "user", "content": "hi"}


def calls(*ids: object) -> dict[str, Any]:
    made = [
        {"id": id, "function": {"name": f"f{i}", "arguments": "{}"}} for i, id in enumerate(ids)
    ]
    return {"role": "assistant", "tool_calls": made}


def result(id: str | None, content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content or str(id), **more}


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message.content for message in parse_messages(messages) if message.role == "tool"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_a_shuffled_conversation_gives_the_prompt_of_the_one_in_order(
    rounds: list[int], data: st.DataObject
) -> None:
    ordered: list[dict[str, Any]] = []
    shuffled: list[dict[str, Any]] = []
    for number, count in enumerate(rounds):
        ids = [f"{number}-{i}" for i in range(count)]
        results = [result(id) for id in ids]
        ordered += [USER, calls(*ids), *results]
        shuffled += [USER, calls(*ids), *data.draw(st.permutations(results))]
    for name in ("deepseek-v3.1", "deepseek-v3-0324"):
        assert render_chat(TEMPLATES[name], shuffled) == render_chat(TEMPLATES[name], ordered)


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([calls("a", "b"), result("b"), result("a")], ["a", "b"]),
        ([calls("a", "b"), result("b"), USER, result("a")], ["a", "b"]),  # around what was said
        ([calls("a", "b"), result(None, "1"), result(None, "2")], ["1", "2"]),
        ([calls("a", "b"), result(None, "1"), result("a")], ["a", "1"]),
        ([calls("a", "a"), result("a", "1"), result("a", "2")], ["1", "2"]),
        ([calls("", None), result("x", "1"), result("y", "2")], ["1", "2"]),
        # Ollama's clients name the tool
        ([calls(None, None), result(None, "1", name="f1"), result(None, "2", name="f0")],
         ["2", "1"]),
        ([calls("a"), result("a"), calls("a"), result("a", "2")], ["a", "2"]),
        ([calls("a", "b"), result("a"), USER], ["a"]),
        ([calls("a", "b"), USER], []),
        ([result(None, "1"), result(None, "2")], ["1", "2"]),
    ],
)  # fmt: skip
def test_results_stand_in_the_order_of_their_calls(
    messages: list[dict[str, Any]], wanted: list[str]
) -> None:
    assert contents([USER, *messages]) == wanted


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([calls("a"), result("b")], "messages[2].tool_call_id"),
        ([calls("a"), result("a"), result("a")], "messages[3].tool_call_id"),
        ([result("a")], "messages[1].tool_call_id"),
        ([calls("a"), result("a"), {"role": "assistant", "content": "x"}, result("a")],
         "messages[4].tool_call_id"),
        ([calls("a", "b"), result("b")], "messages[1].tool_calls[0]"),
        ([calls(*"a"), {**result("a"), "tool_call_id": 5}], "messages[2].tool_call_id"),
        ([calls(5)], "messages[1].tool_calls[0].id"),
    ],
)  # fmt: skip
def test_results_that_are_of_no_call_are_named(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse_messages([USER, *messages])
    assert raised.value.param == param
