"""Compares the answer to each kind of bad input with a clear 4xx, and asks something good after."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "?"}]}
LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(ServerConfig(port=0, max_body_bytes=LIMIT)) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=10) as one:
        yield one


@pytest.fixture
def http(client: httpx.Client) -> Iterator[httpx.Client]:
    """A client whose server answers a good request after each test."""
    yield client
    assert client.post(CHAT, json=ASK).status_code == 200


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The envelope's inside, checked for shape."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    inside: dict[str, Any] = body["error"]
    return inside


def post(http: httpx.Client, body: bytes, path: str = CHAT) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[1, 2]", "invalid_value"),
        (b"null", "invalid_value"),
        (b'"text"', "invalid_value"),
        (b'{"messages": "\xff\xfe"}', "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"n": 1e999}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b"[" * 20_000, "invalid_json"),
        (b'{"messages": ' + b"[" * 20_000, "invalid_json"),
        (b'{"tools": [{"type": "function", "function": {"name": "f", "parameters": '
         + b'{"a": ' * 900 + b"1" + b"}" * 904, "invalid_json"),
    ],
)  # fmt: skip
def test_broken_bodies(http: httpx.Client, body: bytes, code: str) -> None:
    response = post(http, body)
    assert response.status_code == 400
    assert error_of(response)["code"] == code


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 10**6}, "n"),
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"n": 10**30}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 5000}, "stop"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"priority": 2**40}, "priority"),
        ({"thinking_token_budget": 2**64}, "thinking_token_budget"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10**30}}, "thinking.budget_tokens"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"model": "other"}, "model"),
        (
            {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": False}},
            "thinking.type",
        ),
    ],
)
def test_values_out_of_range_are_named(
    http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    response = http.post(CHAT, json={**ASK, **change})
    assert response.status_code in (400, 404)
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/generate", {"text": "?", "priority": 2**64}, "priority"),
        ("/v1/responses", {"input": "?", "priority": 2**64}, "priority"),
        ("/v1/responses", {"input": "?", "thinking_token_budget": -1}, "thinking_token_budget"),
        ("/v1/completions", {"prompt": "?", "thinking_token_budget": 2**64},
         "thinking_token_budget"),
    ],
)  # fmt: skip
def test_numbers_that_no_message_to_the_engine_holds(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_prompt_longer_than_the_context_says_what_fits(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": MODEL, "prompt": [5] * 600})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "511" in error["message"]


@pytest.mark.parametrize(
    "prompt", [[], "", [[]], [1, "a"], ["a", [1]], [1.5], [-1], [10**12], ["x"] * 300, [[True]]]
)
def test_prompts_that_are_none(http: httpx.Client, prompt: object) -> None:
    response = http.post("/v1/completions", json={"model": MODEL, "prompt": prompt})
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith("prompt")


def test_too_many_sequences(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": MODEL, "prompt": ["x"] * 100, "n": 8})
    assert response.status_code == 400
    assert error_of(response)["param"] == "n"


def test_large_body_is_refused_before_it_is_read(http: httpx.Client) -> None:
    response = post(http, b" " * (LIMIT + 1))
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"


def test_100_mb_body_of_unknown_length(http: httpx.Client) -> None:
    """Without a Content-Length the limit is noticed on the way, and the client still hears it."""

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 2**20

    headers = {"content-type": "application/json"}
    response = http.post(CHAT, content=chunks(), headers=headers)
    assert response.status_code == 413


def test_declared_size_is_believed_at_once(server: LiveServer) -> None:
    """The refusal comes before the first byte of the body does."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(head.encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")


def test_other_media_types(http: httpx.Client) -> None:
    response = http.post(CHAT, content=json.dumps(ASK), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    missing = http.get("/v1/embeddings")
    assert missing.status_code == 404
    error_of(missing)
    wrong = http.get(CHAT)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    error_of(wrong)


def test_giant_headers(server: LiveServer) -> None:
    for request in (
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: 1\r\n" * 150 + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 2_000_000,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            try:
                raw.sendall(request)
                assert b" 431 " in raw.recv(65536).split(b"\r\n")[0] + b" "
            except (ConnectionResetError, BrokenPipeError):
                pass  # hung up on while it was still sending


def test_not_http(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(b"\x16\x03\x01\x00 this is not HTTP\r\n\r\n")
        answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


THINKING: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"thinking": True}, "thinking"),
    (CHAT, {"thinking": {"type": "enabled"}}, "thinking.type"),
    (CHAT, {"enable_thinking": True}, "enable_thinking"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": True}},
     "chat_template_kwargs.enable_thinking"),
    ("/tokenize", {"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking"),
    ("/v1/responses", {"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 9}, "max_tokens": 20},
     "thinking.type"),
    ("/api/chat", {"think": True}, "think"),
]  # fmt: skip


def test_a_refusal_of_thinking_names_the_field_that_was_sent() -> None:
    """It named `thinking`, which most of these had not sent."""
    with (
        LiveServer(template_name="deepseek-v3") as live,
        httpx.Client(base_url=live.url, timeout=10) as http,
    ):
        for path, change, field in THINKING:
            body = {"input": "?"} if path == "/v1/responses" else {"messages": ASK["messages"]}
            response = http.post(path, json={"model": MODEL, **body, **change})
            assert response.status_code == 400
            error = response.json()["error"]
            said = error if isinstance(error, str) else error["message"]
            assert f"{field} cannot be on with the deepseek-v3 template" in said
            if isinstance(error, dict):
                assert error.get("param", field) == field


IMAGE = {"type": "input_image", "image_url": "data:,", "detail": "low"}
WRONG_KINDS: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {**ASK, "tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
    (CHAT, {**ASK, "tool_choice": "any"}, "tool_choice", "'none', 'required', an object"),
    (CHAT, {**ASK, "thinking": {"type": "on"}}, "thinking.type", "'enabled', 'disabled'"),
    (CHAT, {**ASK, "response_format": {"grammar": "", "type": "ebnf"}}, "response_format.type",
     "'text', 'json_object', 'json_schema', 'structural_tag'"),
    ("/v1/responses", {"input": "?", "tools": [{"type": "file_search", "filters": {}}]},
     "tools[0].type", "'function'"),
    ("/v1/responses", {"input": "?", "include": ["all"]}, "include[0]", "reasoning.encrypted"),
    ("/v1/responses", {"input": [{"role": "user", "content": [IMAGE]}]},
     "input[0].content[0].type", "text only; found: input_image"),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "refusal"}]}]},
     "input[0].content[0].type", "'input_text'"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "said"), WRONG_KINDS)
def test_words_that_are_none_of_a_fields_are_told_with_those_that_are(
    http: httpx.Client, path: str, body: dict[str, Any], param: str, said: str
) -> None:
    """They were told without, and what has another type by a field that only that type has."""
    response = http.post(path, json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert said in error["message"]
