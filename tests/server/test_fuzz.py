"""Compares the status of malformed requests, drawn by hypothesis, with: never 5xx, always in the
envelope."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.server.refused import refusals
from fathom.server.routes import ROUTES
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

HI = [{"role": "user", "content": "?"}]
# Path -> a good body, and the tables of what is refused there.
BODIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/chat/completions": ({"model": MODEL, "messages": HI}, ("openai", "chat")),
    "/v1/completions": ({"model": MODEL, "prompt": "?"}, ("openai", "completions")),
    "/v1/messages": ({"model": MODEL, "messages": HI, "max_tokens": 5}, ("anthropic",)),
    "/api/chat": ({"model": MODEL, "messages": HI}, ("ollama",)),
    "/api/generate": ({"model": MODEL, "prompt": "?"}, ("ollama",)),
    "/generate": ({"text": "?"}, ("sglang",)),
    "/v1/responses": ({"model": MODEL, "input": "?"}, ("responses",)),
    "/api/show": ({"model": MODEL}, ()),
}
KINDS = {route.path: route.body for route in ROUTES if route.body is not None}
# Path -> a good body, and the names that a body may have.
ASKED = {
    path: (body, [*KINDS[path].__struct_fields__, *refusals(*tables).top])
    for path, (body, tables) in BODIES.items()
}
# Tested elsewhere here, or the same handlers under other paths.
OTHERS = {
    *(
        "/tokenize",
        "/detokenize",
        "/flush_cache",
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens",
        "/chat/completions",
    ),
    *("/completions", "/beta/chat/completions", "/beta/completions"),
    *("/anthropic/v1/messages", "/anthropic/v1/messages/count_tokens"),
}
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from(["user", "text", "auto", "function", "enabled"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=8), st.sampled_from(["type", "role", "content", "name"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"])},
        optional={"content": VALUES, "tool_calls": VALUES, "name": VALUES, "prefix": VALUES},
    ),
    max_size=4,
)
BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "x"])},
        optional=dict.fromkeys(("text", "id", "name", "input", "tool_use_id", "content"), VALUES),
    ),
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": BLOCKS}
    ),
    max_size=4,
)
SETTINGS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with LiveServer() as live, httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        if isinstance(error, dict):
            assert error["message"]
            assert error["type"]
            assert error["code"]
        assert error


def test_every_route_with_a_body_is_here() -> None:
    assert {route.path for route in ROUTES if route.method == "POST"} == {*ASKED, *OTHERS}


@pytest.mark.parametrize("path", ASKED)
@SETTINGS
@given(st.data())
def test_any_values_in_known_fields(http: httpx.Client, path: str, data: st.DataObject) -> None:
    good, names = ASKED[path]
    body = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=4))
    check(http.post(path, json=good))
    check(http.post(path, json={**good, **body}))


ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(
                ["message", "function_call", "function_call_output", "reasoning", "x"]
            ),
            "role": st.sampled_from(["user", "assistant", "system", "developer", "x"]),
            **dict.fromkeys(("content", "call_id", "name", "arguments", "output", "id"), VALUES),
        },
    ),
    max_size=4,
)


@SETTINGS
@given(ITEMS, VALUES)
def test_any_items(http: httpx.Client, items: list[Any], tools: object) -> None:
    check(http.post("/v1/responses", json={"input": items, "tools": tools}))
    check(http.post("/v1/responses", json={"input": items}))
    check(http.post("/v1/responses/input_tokens", json={"input": items}))


@SETTINGS
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_query(http: httpx.Client, limit: str, after: str) -> None:
    kept = http.post("/v1/responses", json={"input": "?"}).json()["id"]
    check(http.get(f"/v1/responses/{kept}/input_items", params={"limit": limit, "after": after}))
    check(http.get(f"/v1/responses/{kept}", params={limit or "x": after}))


@SETTINGS
@given(TURNS, VALUES)
def test_any_blocks(http: httpx.Client, turns: list[Any], tools: object) -> None:
    body = {"messages": turns, "max_tokens": 5}
    check(http.post("/v1/messages", json=body))
    check(http.post("/v1/messages", json={**body, "system": turns, "tools": tools}))
    check(http.post("/v1/messages/count_tokens", json={"messages": turns}))


@SETTINGS
@given(MESSAGES, VALUES)
def test_any_conversation(http: httpx.Client, messages: list[Any], tools: object) -> None:
    check(http.post("/v1/chat/completions", json={"messages": messages}))
    check(http.post("/v1/chat/completions", json={"messages": messages, "tools": tools}))
    check(http.post("/tokenize", json={"messages": messages}))


@SETTINGS
@given(st.sampled_from(["/tokenize", "/detokenize"]), VALUES, VALUES)
def test_any_tokens(http: httpx.Client, path: str, first: object, second: object) -> None:
    check(http.post(path, json={"tokens": first}))
    check(http.post(path, json={"prompt": second}))


@SETTINGS
@given(st.data())
def test_any_damage_to_a_good_body(http: httpx.Client, data: st.DataObject) -> None:
    good = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "héllo"}]}).encode()
    cut = data.draw(st.integers(0, len(good)))
    noise = data.draw(st.binary(max_size=12))
    width = data.draw(st.integers(0, 6))
    body = good[:cut] + noise + good[cut + width :]
    headers = {"content-type": "application/json"}
    check(http.post("/v1/chat/completions", content=body, headers=headers))


@SETTINGS
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
        st.sampled_from(["v1/models/%ff", "v1/models/%2e%2e%2f", "v1//models", "%00"]),
    ),
)
def test_any_path(http: httpx.Client, method: str, path: str) -> None:
    raw = b"/" + path.encode().replace(b"#", b"%23")
    request = http.build_request(method, http.base_url)
    request.url = request.url.copy_with(raw_path=raw)
    response = http.send(request)
    assert response.status_code < 500
