"""Compares errors of every status, in every dialect, with what its real client makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from anthropic.types import ErrorResponse

from fathom.errors import FathomError, UnavailableError
from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL, overloaded

ASK: list[Any] = [{"role": "user", "content": "What?"}]
KEY = "secret"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _openai_error(url: str, key: str, method: str, path: str, body: Any) -> tuple[int, str]:
    asked = openai._models.FinalRequestOptions.construct(method=method, url=path, json_data=body)
    with (
        openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.request(httpx.Response, asked)
    error: Any = raised.value.body
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    return raised.value.status_code, error["message"]


def _anthropic_error(url: str, key: str, method: str, path: str, body: Any) -> tuple[int, str]:
    asked = anthropic._models.FinalRequestOptions.construct(method=method, url=path, json_data=body)
    with (
        anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        client.request(httpx.Response, asked)
    status = raised.value.status_code
    error = raised.value.body
    assert isinstance(error, dict)
    assert error["type"] == "error"
    assert error["error"]["type"] == ANTHROPIC_TYPES[status]
    if status != 413:  # which the client has no struct for
        told = ErrorResponse.model_validate(error)
        assert told.error.message == error["error"]["message"]
    return status, error["error"]["message"]


def _ollama_error(url: str, key: str, method: str, path: str, body: Any) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"}
    with (
        ollama.Client(host=url, headers=headers) as client,
        pytest.raises(ollama.ResponseError) as raised,
    ):
        client._request_raw(method, path, json=body)
    assert isinstance(raised.value.error, str)
    return raised.value.status_code, raised.value.error


def _sglang_error(url: str, key: str, method: str, path: str, body: Any) -> tuple[int, str]:
    """SGLang's client shows the JSON as it is; the server's own has a message in an object."""
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.request(method, url + path, json=body, headers=headers)
    return answer.status_code, answer.json()["error"]["message"]


MESSAGES = {"model": MODEL, "max_tokens": 9, "messages": ASK}
Ask = Callable[[str, str, str, str, Any], tuple[int, str]]
# What asks, for what, and paths beside that which are not there.
DIALECTS: dict[str, tuple[Ask, str, dict[str, Any], str]] = {
    "openai": (_openai_error, "/v1/chat/completions", {"messages": ASK}, "/v1/nowhere"),
    "responses": (_openai_error, "/v1/responses", {"input": "a"}, "/v1/responses/a/cancel"),
    "deepseek": (_openai_error, "/beta/completions", {"prompt": "a"}, "/beta/nowhere"),
    "anthropic": (_anthropic_error, "/v1/messages", MESSAGES, "/v1/messages/batches"),
    "its base": (_anthropic_error, "/anthropic/v1/messages", MESSAGES, "/anthropic/v1/models"),
    "ollama": (_ollama_error, "/api/chat", {"model": MODEL, "messages": ASK}, "/api/embed"),
    "sglang": (_sglang_error, "/generate", {"text": "a"}, "/encode"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_of_any_status_is_one_to_its_client(dialect: str) -> None:
    ask, path, body, nowhere = DIALECTS[dialect]
    config = ServerConfig(port=0, api_key=(KEY,), max_body_bytes=1024)
    refusals: tuple[FathomError, ...] = (overloaded(), UnavailableError("the engine is loading"))
    with LiveServer(config) as server:
        got = [
            ask(server.url, KEY, "POST", path, {**body, "zzz": 1}),
            ask(server.url, "wrong", "POST", path, body),
            ask(server.url, KEY, "POST", nowhere, body),
            ask(server.url, KEY, "PUT", path, body),
            ask(server.url, KEY, "POST", path, {**body, "zzz": "z" * 2000}),
        ]
        for refusal in refusals:
            server.engine.refuse = refusal
            got.append(ask(server.url, KEY, "POST", path, body))
    statuses, told = zip(*got, strict=True)
    assert statuses == (400, 401, 404, 405, 413, 429, 503)
    assert all(told)
