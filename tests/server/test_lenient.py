"""Compares what a lenient server answers to an unknown field, in each dialect, whole and streamed,
with what a strict one refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

HI = [{"role": "user", "content": "?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "?"},
    "/v1/responses": {"input": "?"},
    "/v1/messages": {"model": MODEL, "messages": HI, "max_tokens": 50},
    "/api/chat": {"model": MODEL, "messages": HI},
    "/api/generate": {"model": MODEL, "prompt": "?"},
    "/generate": {"text": "?"},
}


@pytest.fixture(scope="module")
def lenient() -> Iterator[LiveServer]:
    with LiveServer(ServerConfig(port=0, lenient=True)) as live:
        yield live


@pytest.fixture(scope="module")
def strict() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("is_stream", [False, True])
def test_unknown_fields_are_told(
    lenient: LiveServer, strict: LiveServer, path: str, is_stream: bool
) -> None:
    body = {**BODIES[path], "stream": is_stream, "zzz": 1}
    refused = httpx.post(strict.url + path, json=body)
    assert refused.status_code == 400
    assert "unknown field zzz" in refused.text
    answered = httpx.post(lenient.url + path, json=body)
    assert answered.status_code == 200
    assert '"warnings":["unknown field zzz"]' in answered.text
    plain = httpx.post(lenient.url + path, json={**BODIES[path], "stream": is_stream})
    assert "warnings" not in plain.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "?"}),
        ("/tokenize", {"messages": HI}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": HI}),
        ("/v1/responses/input_tokens", {"input": "?"}),
        ("/api/show", {"model": MODEL}),
    ],
)
def test_routes_that_generate_nothing_tell_too(
    lenient: LiveServer, strict: LiveServer, path: str, body: dict[str, Any]
) -> None:
    assert httpx.post(strict.url + path, json={**body, "zzz": 1}).status_code == 400
    answered = httpx.post(lenient.url + path, json={**body, "zzz": 1})
    assert answered.json()["warnings"] == ["unknown field zzz"]
    assert "warnings" not in httpx.post(lenient.url + path, json=body).json()
