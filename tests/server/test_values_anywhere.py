"""Compares the answer to bodies that are right but for one value, of any type and anywhere in them,
with 200 or a 4xx; and for one unknown field, with a refusal or a warning that names it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

# Where any name may stand; what is in tags is the grammar's business (`tests/text/grammar`).
FREE = {"parameters", "schema", "input_schema", "input", "arguments", "metadata", "json"}
FREE |= {"logit_bias", "structures"}
HI = {"role": "user", "content": "?"}
VALUES: list[Any] = [None, 0, -1, True, "", "x", 1.5, 2**70, [], [None], [[]], {}, {"a": None}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TEXT = [{"type": "text", "text": "?"}]
SAID = [{"type": "input_text", "text": "?"}]
# As many fields as go together; every value in them is replaced by each of the others.
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {
        "messages": [{"role": "system", "content": "s", "name": "n"}, {**HI, "content": TEXT},
                     {"role": "assistant", "reasoning_content": "r", "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "c", "content": "4"}],
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True, "top_logprobs": 1, "stop": ["q"], "logit_bias": {"5": 1}, "n": 1,
        "stop_token_ids": [3], "bad_words": ["zz"], "chat_template_kwargs": {"thinking": False},
        "thinking": {"type": "disabled"}, "seed": 1, "truncate_prompt_tokens": 50, "priority": 1,
        "max_tokens": 2, "cache_salt": "a", "stream": False}),
    ("/v1/chat/completions", {"messages": [HI], "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}}),
    ("/v1/chat/completions", {"messages": [HI], "response_format": {
        "type": "structural_tag", "triggers": ["<a>"],
        "structures": [{"begin": "<a>", "schema": {"type": "object"}, "end": "</a>"}]}}),
    ("/v1/completions", {"prompt": ["a", "b"], "echo": True, "logprobs": 1, "max_tokens": 2,
                         "structured_outputs": {"json": {"type": "boolean"}}}),
    ("/v1/messages", {
        "model": MODEL, "max_tokens": 2, "metadata": {"user_id": "u"}, "stop_sequences": ["z"],
        "system": [{**TEXT[0], "cache_control": {"type": "ephemeral", "ttl": "5m"}}],
        "messages": [HI, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"}, *TEXT,
            {"type": "redacted_thinking", "data": "d"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
                                          "content": TEXT, "is_error": False}, *TEXT]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "strict": False}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1}, "output_config": {"effort": "low"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}),
    ("/v1/responses", {
        "input": [{"type": "message", "role": "user", "id": "a", "content": SAID},
                  {"type": "reasoning", "id": "r", "summary": [],
                   "content": [{"type": "reasoning_text", "text": "x"}]},
                  {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": SAID}],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "tool_choice": {"type": "function", "name": "f"}, "metadata": {"a": "b"},
        "reasoning": {"effort": "none", "summary": "auto"}, "text": {"format": {"type": "text"}},
        "include": ["message.output_text.logprobs"], "top_logprobs": 1, "max_output_tokens": 2}),
    ("/api/chat", {
        "model": MODEL, "stream": False, "keep_alive": "5m", "logprobs": True, "top_logprobs": 1,
        "messages": [{"role": "assistant", "thinking": "t", "tool_calls": [
            {"function": {"name": "f", "arguments": {}, "index": 0}, "id": "x"}]},
            {"role": "tool", "content": "x", "tool_name": "f"}, HI],
        "tools": [TOOL], "think": False, "options": {"stop": ["x"], "seed": 1}}),
    ("/api/generate", {"model": MODEL, "prompt": "?", "system": "s", "format": "json",
                       "context": [], "options": {"num_predict": 2}}),
    ("/generate", {"text": ["a"], "return_logprob": True, "top_logprobs_num": 1, "rid": "r",
                   "logprob_start_len": 0, "sampling_params": {"n": 1, "logit_bias": {"5": 1}}}),
    ("/tokenize", {"messages": [HI], "tools": [TOOL], "chat_template_kwargs": {"thinking": True}}),
]  # fmt: skip


def places(inside: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a body."""
    if isinstance(inside, dict | list):
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            yield (*path, key)
            yield from places(inside[key], *path, key)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_value_anywhere(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        fine = http.post(path, json=body)
        assert fine.status_code == 200, fine.text
        for place in places(body):
            for value in VALUES:
                changed = copy.deepcopy(body)
                inside: Any = changed
                for key in place[:-1]:
                    inside = inside[key]
                inside[place[-1]] = value
                told = http.post(path, json=changed)
                assert told.status_code in (200, 400, 404), (place, value, told.text)
                if path == "/v1/responses" and told.status_code == 200:
                    _comes_back(http, told)


@pytest.fixture(scope="module")
def lenient() -> Iterator[LiveServer]:
    with LiveServer(ServerConfig(port=0, lenient=True)) as live:
        yield live


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_an_unknown_field_anywhere(
    server: LiveServer, lenient: LiveServer, path: str, body: dict[str, Any]
) -> None:
    free = FREE - {"input"} if path == "/v1/responses" else FREE
    for place in [(), *places(body)]:
        changed = copy.deepcopy(body)
        inside: Any = changed
        for key in place:
            inside = inside[key]
        if isinstance(inside, dict) and not free & set(place):
            inside["zzz"] = 1
            refused = httpx.post(server.url + path, json=changed)
            assert (refused.status_code, "zzz" in refused.text) == (400, True), place
            told = httpx.post(lenient.url + path, json=changed)
            assert told.status_code == 200, (place, told.text)
            assert "zzz" in told.text.partition('"warnings"')[2], place


def _comes_back(http: httpx.Client, told: httpx.Response) -> None:
    """What was kept of an answer can be read and gone on from."""
    if told.headers["content-type"] == "application/json":
        name = told.json()["id"]
        if http.get(f"/v1/responses/{name}").status_code == 200:
            assert http.get(f"/v1/responses/{name}/input_items").status_code == 200
            further = {"input": "?", "previous_response_id": name}
            assert http.post("/v1/responses", json=further).status_code == 200
