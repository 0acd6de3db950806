"""Compares what a proxy reads in untidy answers, however they are cut, with what was put into
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.engine.upstream.chat import ChatReader
from fathom.engine.upstream.wire import EventStream
from fathom.text.delta import Delta
from tests.server.proxying import (
    CALLS,
    sse,
)

FENCED = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
# What an upstream writes as content: reasoning, text and calls that are in it.
LEAKS: list[tuple[str, str, str, list[str]]] = [
    ("plain", "", "plain", []),
    ("<think>\nWhy?\n</think>\n\nSo.", "Why?", "So.", []),
    ("\n <think>Why ☃?</think>So.", "Why ☃?", "So.", []),
    ("<think>never closed", "never closed", "", []),
    ("Say <think> and </think>.", "", "Say <think> and </think>.", []),
    ("<thin", "", "<thin", []),
    (f"See.{CALLS}", "", "See.", ['{"a": 1, "b": "☃"}']),
    (f"<think>a</think>{CALLS}", "a", "", ['{"a": 1, "b": "☃"}']),
    (FENCED, "", "", ['{"a": 1}']),
    ("<｜tool▁call", "", "<｜tool▁call", []),
]


@pytest.mark.parametrize(("text", "reasoning", "answer", "calls"), LEAKS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.data())
def test_leaked_markup_is_parted_however_the_stream_is_cut(
    text: str, reasoning: str, answer: str, calls: list[str], cuts: st.DataObject
) -> None:
    pieces = _cut(text, cuts)
    raw = sse(
        *({"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ).replace(b"\n", cuts.draw(st.sampled_from([b"\n", b"\r\n"])))
    deltas: list[Delta] = []
    reader = ChatReader("x", 1, True, deltas.append)
    stream = EventStream(reader.event)
    for part in _cut(raw, cuts):
        stream.feed(part, 0.0)
    reader.finish()
    assert "".join(delta.text for delta in deltas) == answer
    assert "".join(delta.reasoning for delta in deltas) == reasoning
    found = [call for delta in deltas for call in delta.tool_calls]
    told_calls = ["".join(c.arguments for c in found if c.index == i) for i in range(len(calls))]
    assert told_calls == calls
    assert {c.index for c in found} == set(range(len(calls)))
    assert deltas[-1].finish_reason == ("tool_calls" if calls else "stop")


def _cut(whole_text: Any, cuts: st.DataObject) -> list[Any]:
    places = sorted(cuts.draw(st.sets(st.integers(0, len(whole_text)), max_size=12)))
    bounds = zip([0, *places], [*places, len(whole_text)], strict=True)
    return [whole_text[start:end] for start, end in bounds]


def test_what_the_upstream_parted_stays_as_it_is() -> None:
    """After reasoning of its own, `<think>` is a word; its calls and ours are numbered together."""
    deltas: list[Delta] = []
    reader = ChatReader("x", 1, True, deltas.append)
    stream = EventStream(reader.event)
    call: Callable[..., Any] = lambda **more: {"delta": {"tool_calls": [{"index": 0, **more}]}}  # noqa: E731
    usage = {"prompt_tokens": 7, "completion_tokens": 30, "prompt_cache_hit_tokens": 4}
    stream.feed(
        sse(
            {"choices": [{"delta": {"reasoning": "Hm."}}]},
            {"choices": [{"delta": {"content": "<think>"}}]},
            {"choices": [call(id="c1", function={"name": "mul", "arguments": ""})]},
            {"choices": [call(function={"arguments": "{}"})]},
            {"choices": [{"delta": {"content": CALLS}}]},
            {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
            {"choices": [], "usage": usage},
        ),
        0.0,
    )
    reader.finish()
    assert "".join(delta.text for delta in deltas) == "<think>"
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    names = {c.index: c.name for delta in deltas for c in delta.tool_calls if c.name}
    assert names == {0: "mul", 1: "add"}
    last = deltas[-1]
    assert (last.num_prompt, last.num_tokens, last.num_cached) == (7, 30, 4)
