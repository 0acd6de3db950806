"""Compares what a proxy makes of SGLang's recorded streams with SGLang's own answers in one piece,
and what it asks of an SGLang with what that honours as it was started."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.live_server import WAIT_S
from tests.server.proxying import ASK, FILES, TOOLS, FakeUpstream, LiveProxy, sse
from tests.server.recorded_sglang import CHAT, FILE

_SETTINGS, *_ROWS = map(json.loads, FILE.read_text("utf-8").splitlines())
OTHER: list[Any] = [{"type": "function", "function": {"name": "mul"}}]
NAMED = {"type": "function", "function": {"name": "add"}}
END = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in _ROWS])
def test_a_recorded_stream_says_what_sglang_says_in_one_piece(row: dict[str, Any]) -> None:
    pieces = [piece.encode() + b"\n\n" for piece in row["raw"].split("\n\n")]
    upstream = FakeUpstream(owner="sglang", settings=_SETTINGS, status=row["status"], pieces=pieces)
    files = FILES if row["files"] else None
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        ask = {**row["ask"], "model": "fake"}
        answer = httpx.post(proxy.url + CHAT, json=ask, timeout=WAIT_S)
    assert upstream.bodies == [row["sent"]]
    assert upstream.heads[-1].split()[1] == row["path"]
    whole = row["whole"]
    if "choices" not in whole:
        error = answer.json()["error"]
        assert answer.status_code == whole["code"] == 400
        assert whole["message"] in error["message"]
        assert (error["code"] == "context_length_exceeded") == ("context" in whole["message"])
        return
    assert answer.status_code == 200, answer.text
    _compare(answer.json(), whole, row)


def _compare(answer: dict[str, Any], whole: dict[str, Any], row: dict[str, Any]) -> None:
    got, wanted = answer["choices"][0], whole["choices"][0]
    assert (got["message"]["content"] or "") == wanted["message"]["content"]
    assert got["message"].get("reasoning_content") == wanted["message"]["reasoning_content"]
    assert _calls(got) == _calls(wanted)
    assert got["finish_reason"] == wanted["finish_reason"]
    matched = wanted["matched_stop"]  # which the end of an answer is, too
    assert got["stop_reason"] == (None if matched == 1 else matched)
    if row["ask"].get("logprobs"):
        scores = [token["logprob"] for token in got["logprobs"]["content"]]
        assert scores == [
            token["logprob"] for token in wanted["logprobs"]["content"][: len(scores)]
        ]
        assert scores
    usage, their = answer["usage"], whole["usage"]
    assert usage["prompt_tokens"] == their["prompt_tokens"]
    assert usage["completion_tokens"] == their["completion_tokens"]
    # SGLang's count of reasoning has `</think>` in it; read from ids, it has not.
    num_markers = int(row["files"] and their["reasoning_tokens"] > 0)
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert reasoning == their["reasoning_tokens"] - num_markers
    told = [json.loads(line[6:]) for line in row["raw"].splitlines() if line.startswith("data: {")]
    if matched is None or not (row["files"] and isinstance(matched, str)):
        cached = told[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached


def _calls(choice: dict[str, Any]) -> list[Any]:
    calls = choice["message"].get("tool_calls") or []
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


ON = {
    "enable_deterministic_inference": True,
    "enable_priority_scheduling": True,
    "tool_call_parser": "deepseekv31",
}
FORCED = {"tools": [*TOOLS, *OTHER], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("settings", "body", "sent"),
    [
        (ON, {"seed": 3}, {"seed": 3}),
        # Higher ones go first there, lower ones here, where nothing else is said.
        (ON, {"priority": 2}, {"priority": -2}),
        ({**ON, "schedule_low_priority_values_first": True}, {"priority": 2}, {"priority": 2}),
        (ON, FORCED, {"tools": ["add", "mul"], "tool_choice": "required"}),
        (
            {},
            FORCED,
            {"tool_choice": "required"},
        ),  # a router that does not tell: serving calls needs the parser anyway
        # The template is shown the tool that is named, but the grammar lets all be called.
        (ON, {**FORCED, "tool_choice": NAMED}, {"tools": ["add"], "tool_choice": NAMED}),
    ],
)
def test_what_sglang_honours_as_it_was_started_reaches_it(
    settings: dict[str, Any], body: dict[str, Any], sent: dict[str, Any]
) -> None:
    upstream = FakeUpstream(owner="sglang", settings=settings, pieces=[END])
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        answer = httpx.post(proxy.url + CHAT, json={"messages": ASK, **body}, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    (got,) = upstream.bodies
    got["tools"] = [tool["function"]["name"] for tool in got.get("tools", [])]
    assert {name: got[name] for name in sent} == sent


@pytest.mark.parametrize("files", [None, FILES])
@pytest.mark.parametrize(
    ("settings", "body", "flag"),
    [
        ({}, {"seed": 3}, "--enable-deterministic-inference"),
        (ON, {"seed": 3, "n": 2}, "the same seed"),
        ({}, {"priority": 2}, "--enable-priority-scheduling"),
        ({**ON, "tool_call_parser": None}, FORCED, "--tool-call-parser"),
    ],
)  # fmt: skip
def test_what_sglang_would_ignore_as_it_was_started_is_refused(
    settings: dict[str, Any], body: dict[str, Any], flag: str, files: str | None
) -> None:
    upstream = FakeUpstream(owner="sglang", settings=settings, pieces=[END])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        answer = httpx.post(proxy.url + CHAT, json={"messages": ASK, **body}, timeout=WAIT_S)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == next(
        name for name in ("seed", "priority", "tool_choice") if name in body
    )
    assert files is not None or flag in error["message"]
    assert not upstream.bodies


@pytest.mark.parametrize("files", [None, FILES])
@pytest.mark.parametrize(("code", "status"), [(400, 400), (503, 503), (500, 502), (None, 502)])
def test_an_error_within_a_stream_is_what_its_code_says(
    code: int | None, status: int, files: str | None
) -> None:
    """SGLang compiles a form after it has answered 200: a client's own mistake came as a 502."""
    raw = sse(
        {"error": {"object": "error", "message": "no such luck", "param": None, "code": code}}
    )
    upstream = FakeUpstream(owner="sglang", pieces=[raw])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        answer = httpx.post(proxy.url + CHAT, json={"messages": ASK}, timeout=WAIT_S)
    assert answer.status_code == status
    assert "no such luck" in answer.json()["error"]["message"]
