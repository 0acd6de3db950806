"""Compares the answer at each limit with 200, and one over it with a 4xx that names the field, the
limit and the setting, in every dialect."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from fathom.errors import ConfigError
from fathom.server.config import ServerConfig
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

LIMITS = {
    "max_choices": 4,
    "max_logprobs": 3,
    "max_stop_strings": 2,
    "max_prompts": 5,
    "max_request_sequences": 8,
    "max_messages": 3,
    "max_tools": 2,
    "max_schema_chars": 80,
    "max_headers": 12,
    "max_header_bytes": 1024,
    "max_body_bytes": 4096,
}
Body = dict[str, Any]
Make = Callable[[int], Body]


@pytest.fixture(scope="module")
def http_client() -> Iterator[httpx.Client]:
    config = ServerConfig(port=0, **LIMITS)  # type: ignore[arg-type]
    with LiveServer(config) as live, httpx.Client(base_url=live.url, timeout=20) as one:
        yield one


def turns(count: int) -> list[Body]:
    """As many messages, the last one a user's."""
    roles = ["user", "assistant"] if count % 2 else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": "?"} for i in range(count)]


def chat(**more: Any) -> Body:
    return {"model": MODEL, "messages": turns(1), "max_tokens": 3, **more}


def text(**more: Any) -> Body:
    return {"model": MODEL, "prompt": "?", "max_tokens": 3, **more}


def sglang(text: Any = "?", top: int | None = None, **sampling: Any) -> Body:
    scores = {} if top is None else {"return_logprob": True, "top_logprobs_num": top}
    return {"text": text, "sampling_params": {"max_new_tokens": 3, **sampling}, **scores}


def ollama(**more: Any) -> Body:
    return {"model": MODEL, "messages": turns(1), "stream": False, **more}


def responses(**more: Any) -> Body:
    return {"model": MODEL, "input": "?", "max_output_tokens": 3, **more}


def schema(size: int) -> Body:
    """A schema whose text has `size` characters."""
    empty = len('{"type": "object", "title": ""}')
    return {"type": "object", "title": "x" * (size - empty)}


def function(parameters: Any = None) -> Body:
    return {"name": "f", "parameters": parameters or {"type": "object"}}


def tool(parameters: Any = None) -> Body:
    return {"type": "function", "function": function(parameters)}


def claude_tool(input_schema: Any = None) -> Body:
    return {"name": "f", "input_schema": input_schema or {"type": "object"}}


def stops(count: int) -> list[str]:
    return [f"stop {i}" for i in range(count)]


CHAT, TEXT, CLAUDE = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES, GENERATE = "/v1/responses", "/generate"
COUNT, INPUT_TOKENS = "/v1/messages/count_tokens", "/v1/responses/input_tokens"
# Setting, path, the field that an error names, and the body for a size of it.
TABLE: list[tuple[str, str, str, Make]] = [
    ("max_choices", CHAT, "n", lambda n: chat(n=n)),
    ("max_choices", TEXT, "n", lambda n: text(n=n)),
    ("max_choices", GENERATE, "sampling_params.n", lambda n: sglang(n=n)),
    ("max_logprobs", CHAT, "top_logprobs", lambda n: chat(logprobs=True, top_logprobs=n)),
    ("max_logprobs", CHAT, "prompt_logprobs", lambda n: chat(prompt_logprobs=n)),
    ("max_logprobs", TEXT, "logprobs", lambda n: text(logprobs=n)),
    ("max_logprobs", GENERATE, "top_logprobs_num", lambda n: sglang(top=n)),
    ("max_logprobs", "/api/chat", "top_logprobs", lambda n: ollama(logprobs=True, top_logprobs=n)),
    ("max_logprobs", RESPONSES, "top_logprobs", lambda n: responses(
        include=["message.output_text.logprobs"], top_logprobs=n)),
    ("max_stop_strings", CHAT, "stop", lambda n: chat(stop=stops(n))),
    ("max_stop_strings", TEXT, "stop", lambda n: text(stop=stops(n))),
    ("max_stop_strings", CLAUDE, "stop_sequences", lambda n: chat(stop_sequences=stops(n))),
    ("max_stop_strings", GENERATE, "sampling_params.stop", lambda n: sglang(stop=stops(n))),
    ("max_stop_strings", "/api/chat", "options.stop", lambda n: ollama(options={"stop": stops(n)})),
    ("max_prompts", TEXT, "prompt", lambda n: text(prompt=["?"] * n)),
    ("max_prompts", GENERATE, "text", lambda n: sglang(["?"] * n)),
    ("max_prompts", GENERATE, "input_ids", lambda n: {"input_ids": [[5]] * n}),
    ("max_messages", CHAT, "messages", lambda n: chat(messages=turns(n))),
    ("max_messages", CLAUDE, "messages", lambda n: chat(messages=turns(n))),
    ("max_messages", COUNT, "messages", lambda n: {"model": MODEL, "messages": turns(n)}),
    ("max_messages", "/api/chat", "messages", lambda n: ollama(messages=turns(n))),
    ("max_messages", RESPONSES, "input", lambda n: responses(input=turns(n))),
    ("max_messages", INPUT_TOKENS, "input", lambda n: {"model": MODEL, "input": turns(n)}),
    ("max_messages", "/tokenize", "messages", lambda n: {"messages": turns(n)}),
    ("max_tools", CHAT, "tools", lambda n: chat(tools=[tool()] * n)),
    ("max_tools", CLAUDE, "tools", lambda n: chat(tools=[claude_tool()] * n)),
    ("max_tools", COUNT, "tools",
     lambda n: {"model": MODEL, "messages": turns(1), "tools": [claude_tool()] * n}),
    ("max_tools", INPUT_TOKENS, "tools",
     lambda n: {"model": MODEL, "input": "?", "tools": [{"type": "function", **function()}] * n}),
    ("max_tools", "/tokenize", "tools", lambda n: {"messages": turns(1), "tools": [tool()] * n}),
    ("max_tools", "/api/chat", "tools", lambda n: ollama(tools=[tool()] * n)),
    ("max_tools", RESPONSES, "tools",
     lambda n: responses(tools=[{"type": "function", **function()}] * n)),
    ("max_schema_chars", CHAT, "response_format.json_schema.schema", lambda n: chat(
        response_format={"type": "json_schema", "json_schema": {"schema": schema(n)}})),
    ("max_schema_chars", CHAT, "regex", lambda n: chat(regex="x" * n)),
    ("max_schema_chars", TEXT, "structured_outputs.choice",
     lambda n: text(structured_outputs={"choice": ["x" * (n - 1), "y"]})),
    ("max_schema_chars", CHAT, "tools[0].function.parameters",
     lambda n: chat(tools=[tool(schema(n))])),
    ("max_schema_chars", CLAUDE, "output_config.format.schema", lambda n: chat(
        output_config={"format": {"type": "json_schema", "schema": schema(n)}})),
    ("max_schema_chars", CLAUDE, "tools[0].input_schema",
     lambda n: chat(tools=[claude_tool(schema(n))])),
    ("max_schema_chars", "/api/chat", "format", lambda n: ollama(format=schema(n))),
    ("max_schema_chars", "/api/chat", "tools[0].function.parameters",
     lambda n: ollama(tools=[tool(schema(n))])),
    ("max_schema_chars", RESPONSES, "text.format.schema", lambda n: responses(
        text={"format": {"type": "json_schema", "name": "x", "schema": schema(n)}})),
    ("max_schema_chars", RESPONSES, "tools[0].parameters", lambda n: responses(
        tools=[{"type": "function", **function(schema(n))}])),
    ("max_schema_chars", GENERATE, "sampling_params.ebnf", lambda n: sglang(ebnf="x" * n)),
]  # fmt: skip


def told(response: httpx.Response) -> str:
    """The message of an error, in whatever dialect; its field is checked to be in it."""
    error = response.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


def flag(name: str) -> str:
    return str(ServerConfig.__dataclass_fields__[name].metadata["flags"][0])


@pytest.mark.parametrize(("name", "path", "param", "make"), TABLE)
def test_at_each_limit_and_one_over(
    http_client: httpx.Client, name: str, path: str, param: str, make: Make
) -> None:
    limit = LIMITS[name]
    fine = http_client.post(path, json=make(limit))
    assert fine.status_code == 200, fine.text
    over = http_client.post(path, json=make(limit + 1))
    assert over.status_code == 400
    for said in (f"{param} is over", f"found: {limit + 1}", f"at most {limit}", flag(name)):
        assert said in told(over)
    if isinstance(over.json()["error"], dict):
        assert over.json()["error"]["param"] == param


@pytest.mark.parametrize("path", [CHAT, TEXT, GENERATE])
def test_choices_of_all_prompts_together(http_client: httpx.Client, path: str) -> None:
    def ask(prompts: int, n: int) -> httpx.Response:
        many = ["?"] * prompts
        body = sglang(many, n=n) if path == GENERATE else text(prompt=many, n=n)
        return http_client.post(TEXT if path == CHAT else path, json=body)

    assert ask(4, 2).status_code == 200
    over = ask(3, 3)
    assert over.status_code == 400
    assert "found: 9; wanted: at most 8" in told(over)
    assert "--max-request-sequences" in told(over)


BODIES = {CHAT: chat(), TEXT: text(), CLAUDE: chat(), RESPONSES: responses(), GENERATE: sglang()}
BODIES |= {"/api/chat": ollama(), "/tokenize": {"prompt": "?"}, COUNT: chat()}


@pytest.mark.parametrize("path", [path for path in BODIES if path != COUNT])
def test_bodies(http_client: httpx.Client, path: str) -> None:
    body = json.dumps(BODIES[path]).encode()
    headers = {"content-type": "application/json"}
    for size, status in ((4096, 200), (4097, 413)):
        answer = http_client.post(path, content=body.ljust(size), headers=headers)
        assert answer.status_code == status, answer.text
    assert "found: 4097 bytes; wanted: at most 4096 bytes" in told(answer)
    assert "--max-body-bytes" in told(answer)


@pytest.mark.parametrize("path", ["/v1/models", CLAUDE, "/api/tags"])
def test_headers(http_client: httpx.Client, path: str) -> None:
    def ask(headers: dict[str, str]) -> tuple[int, str]:
        raw = http.client.HTTPConnection(http_client.base_url.host, http_client.base_url.port or 0)
        raw.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            raw.putheader(name, value)
        raw.endheaders()
        answer = raw.getresponse()
        status, body = answer.status, answer.read().decode()
        raw.close()
        return status, body

    host = {"host": "localhost"}
    size = len("hostlocalhost") + len("x")
    is_get = path != CLAUDE
    for filler in (1024 - size, 1025 - size):
        status, body = ask({**host, "x": "y" * filler})
        assert status == ((200 if is_get else 405) if filler == 1024 - size else 431)
    for said in ("found: 1025 bytes", "at most 1024 bytes", "--max-header-bytes"):
        assert said in body
    for count in (11, 12):
        status, body = ask({**host, **{f"x{i}": "y" for i in range(count)}})
        assert status == ((200 if is_get else 405) if count == 11 else 431)
    for said in ("found: 13 headers", "at most 12 headers", "--max-headers"):
        assert said in body


@pytest.mark.parametrize("name", [name for name in LIMITS if name != "max_body_bytes"])
def test_settings_have_ends_themselves(name: str) -> None:
    most = ServerConfig.__dataclass_fields__[name].metadata["most"]
    for value in (1, most):
        ServerConfig(**{name: value})
    for value in (0, -1, most + 1):
        with pytest.raises(ConfigError, match=flag(name)):
            ServerConfig(**{name: value})
