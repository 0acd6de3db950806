"""Compares `fathom proxy`, as a program, with the real server on the embedded model behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import jsonschema
import pytest

from fathom.weights.embedded import embedded_path
from tests.server.processes import WAIT_S, proxying, serving
from tests.server.proxying import told

ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30? Say it in a sentence, please."}]
FILES = str(embedded_path())
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": ASK, "temperature": 0, "max_tokens": 90}),
    (
        "/v1/chat/completions",
        {"messages": ASK, "temperature": 0, "max_tokens": 90, "thinking": True, "top_k": 3},
    ),
    (
        "/v1/chat/completions",
        {"messages": ASK, "temperature": 0, "thinking": True, "thinking_token_budget": 5},
    ),
    ("/v1/messages", {"model": "fathom-embedded", "messages": ASK, "max_tokens": 30, "top_k": 1}),
]


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    """A server, a proxy with its tokenizer, and one without."""
    with ExitStack() as stack:
        server = stack.enter_context(serving("--no-enable-prefix-caching"))
        ways = (("--tokenizer", FILES), ())
        proxies = [stack.enter_context(proxying(server.url, *way)) for way in ways]
        yield [server.url, *(proxy.url for proxy in proxies)]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_the_same_texts_reasoning_and_usage(
    path: str, body: dict[str, Any], urls: list[str]
) -> None:
    answers = [told(httpx.post(url + path, json=body, timeout=WAIT_S).json()) for url in urls]
    assert "usage" in answers[0], answers[0]
    assert answers[1] == answers[0]
    echoed = [answer.pop("thinking") for answer in answers]
    assert answers[2] == answers[0]
    assert echoed[2]["type"] in (echoed[0]["type"], "default")


def test_the_same_draws_for_the_same_seed(urls: list[str]) -> None:
    body = {"prompt": "The answer", "temperature": 1.0, "seed": 5, "n": 2, "logprobs": 3}
    body |= {"echo": True}
    answers = [httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT_S) for url in urls[:2]]
    assert told(answers[0].json()) == told(answers[1].json())
    assert answers[0].status_code == 200


def test_a_form_is_enforced_upstream(urls: list[str]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    for more in ({"thinking": False}, {"thinking": True, "thinking_token_budget": 8}):
        body = {"messages": ASK, "temperature": 0, "max_tokens": 60, "response_format": form}
        asked = [f"{url}/v1/chat/completions" for url in urls]
        answers = [httpx.post(url, json={**body, **more}, timeout=WAIT_S).json() for url in asked]
        messages = [answer["choices"][0]["message"] for answer in answers]
        assert messages[0]["content"].startswith('{"a"'), answers
        assert messages[1] == messages[2] == messages[0]


ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "say": {"enum": ["yes", "no"]}},
    "required": ["a", "say"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": ADD, "strict": True}}
    for name in ("add", "multiply")
]
NAMED = {"type": "function", "function": {"name": "multiply"}}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED, "auto"], ids=["required", "named", "strict"])
def test_forced_and_strict_calls_are_enforced_upstream(
    choice: Any, thinking: bool, urls: list[str]
) -> None:
    """With a tokenizer they travel as a grammar; what binds the answer is the same."""
    body: dict[str, Any] = {"messages": ASK, "temperature": 0, "max_tokens": 200, "tools": TOOLS}
    body |= {"tool_choice": choice, "thinking": thinking}
    body |= {"thinking_token_budget": 8} if thinking else {}
    asked = [f"{url}/v1/chat/completions" for url in urls]
    answers = [httpx.post(url, json=body, timeout=WAIT_S).json() for url in asked]
    messages = [told(answer["choices"][0]["message"]) for answer in answers]
    for message in messages:
        for call in message.get("tool_calls", []):
            jsonschema.validate(json.loads(call["function"]["arguments"]), ADD)
        names = {call["function"]["name"] for call in message.get("tool_calls", [])}
        assert choice == "auto" or names, message
        assert choice != NAMED or names == {"multiply"}
    assert messages[1] == messages[0]


def test_a_schema_at_fault_is_named_before_the_upstream_is_asked(urls: list[str]) -> None:
    bad = {
        "type": "function",
        "function": {"name": "f", "parameters": {"uniqueItems": True}, "strict": True},
    }
    body = {"messages": ASK, "tools": [bad], "tool_choice": "required"}
    answers = [httpx.post(f"{url}/v1/chat/completions", json=body, timeout=WAIT_S) for url in urls]
    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert answers[1].json() == answers[0].json()


def test_it_runs_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import fathom.commands.proxy"
    script += ", fathom.engine.upstream.engine, fathom.server.run"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=WAIT_S)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--upstream"),
        (("--upstream", "ftp://x"), "--upstream"),
        (("--upstream", "http://x", "--api-key-env", "NO_SUCH"), "NO_SUCH"),
        (("--upstream", "http://x", "--chat-template", "deepseek-v3"), "--tokenizer"),
        (("--upstream", "http://x", "--tokenizer", "/no/where"), "--tokenizer"),
        (("--upstream", "http://x", "--host", "0.0.0.0"), "FATHOM_API_KEY"),
    ],
)
def test_wrong_flags_are_told(flags: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fathom.cli", "proxy", "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "FATHOM_API_KEY"},
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
