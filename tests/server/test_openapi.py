"""Compares the description in OpenAPI with the standard's rules for schemas, the route table, and
what the server takes: bodies that it takes are valid by it, and bodies that it refuses for their
shape are not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from fathom.server.config import ServerConfig
from fathom.server.routes import ROUTES
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

HI = [{"role": "user", "content": "?"}]
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}]}
ITEM = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HI, "stop": ["a"], "tool_choice": "none", "top_p": None}),
    ("/v1/chat/completions", {"messages": [{"role": "developer", "content": "?"}], "model": MODEL}),
    ("/tokenize", {"messages": [*HI, {"role": "assistant", "content": None}]}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 2}),
    ("/v1/messages", {"messages": HI, "max_tokens": 2, "system": [{"type": "text", "text": "."}]}),
    (
        "/v1/messages",
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": [CALL]},
                {"role": "user", "content": [RESULT]},
            ],
            "max_tokens": 2,
        },
    ),
    ("/v1/responses", {"input": [{"role": "user", "content": "?"}]}),
    ("/v1/responses/input_tokens", {"input": [{"type": "message", **HI[0]}, ITEM]}),
    ("/api/chat", {"model": MODEL, "messages": HI, "stream": False, "think": False}),
    ("/generate", {"text": "?", "sampling_params": {"max_new_tokens": 2}}),
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 1}]}),
    ("/v1/chat/completions", {"messages": [{"role": "poet", "content": "?"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?", "prefix": True}]}),
    ("/v1/chat/completions", {"messages": HI, "temprature": 1}),
    ("/v1/chat/completions", {"messages": HI, "model": "another"}),
    ("/v1/messages", {"messages": HI}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "x"}]}], "max_tokens": 2}),
    ("/v1/responses", {"input": [{"type": "x"}]}),
    ("/api/chat", {"model": MODEL, "messages": HI, "think": "yes"}),
    ("/generate", {"text": "?", "sampling_params": {"max_tokens": 2}}),
]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with LiveServer() as live, httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def told(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


def test_every_route_is_described(told: Any) -> None:
    described = {(method, path) for path, methods in told["paths"].items() for method in methods}
    assert described == {(one.method.lower(), one.path.replace(":path", "")) for one in ROUTES}
    operations = [one for methods in told["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] for one in operations)
    posts = {path: methods["post"] for path, methods in told["paths"].items() if "post" in methods}
    assert [path for path, one in posts.items() if "requestBody" not in one] == ["/flush_cache"]


def test_schemas_are_schemas_and_references_lead_somewhere(told: Any) -> None:
    schemas = told["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    text = str(told)
    assert set(re.findall(r"#/components/schemas/([\w.]+)", text)) <= schemas.keys()


@pytest.mark.parametrize(("path", "body"), [*TAKEN, *REFUSED])
def test_the_description_says_what_the_server_does(
    http: httpx.Client, told: Any, path: str, body: dict[str, Any]
) -> None:
    schema = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": told["components"]}
    is_taken = (path, body) in TAKEN
    assert jsonschema.Draft202012Validator(whole).is_valid(body) == is_taken
    status = http.post(path, json=body).status_code
    assert status == 200 if is_taken else status in (400, 404)


def test_errors_are_what_is_described(http: httpx.Client, told: Any) -> None:
    for path, body in REFUSED:
        answers = told["paths"][path]["post"]["responses"]
        schema = answers["4XX"]["content"]["application/json"]["schema"]
        whole = {**schema, "components": told["components"]}
        jsonschema.validate(
            http.post(path, json=body).json(), whole, jsonschema.Draft202012Validator
        )


def test_keys_and_leniency_are_told() -> None:
    config = ServerConfig(port=0, api_key=("k",), lenient=True)
    with LiveServer(config) as live:
        url = f"{live.url}/openapi.json"
        assert httpx.get(url).status_code == 401
        told = httpx.get(url, headers={"x-api-key": "k"}).json()
    is_open = {route.path for route in ROUTES if route.is_open}
    for path, methods in told["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in is_open)
    assert told["components"]["schemas"]["openai.ChatRequest"]["additionalProperties"] is True


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/responses/x", {"GET", "DELETE"}),
        ("DELETE", "/v1/models/a/b", {"GET"}),
        ("PUT", "/v1/responses", {"POST"}),
    ],
)
def test_what_a_path_allows_is_told(
    http: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    """Of a path with a parameter only GET was told, for the table was asked for the path itself."""
    response = http.request(method, path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == allowed
