"""Compares what every dialect says of damaged tool calls with what the model was told to write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from fathom.text.markers import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from tests.server.live_server import WAIT_S, LiveServer
from tests.server.proxying import LiveProxy
from tests.server.scripted_engine import MODEL

ASK: list[Any] = [{"role": "user", "content": "?"}]
FUNCTION = {"name": "add", "description": "Adds", "parameters": {"type": "object"}}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": ASK, "tools": TOOLS}),
    "deepseek": ("/chat/completions", {"messages": ASK, "tools": TOOLS}),
    "responses": ("/v1/responses", {"input": "?", "tools": [{"type": "function", **FUNCTION}]}),
    "anthropic": (
        "/v1/messages",
        {
            "model": MODEL,
            "max_tokens": 300,
            "messages": ASK,
            "tools": [{"name": "add", "input_schema": {"type": "object"}}],
        },
    ),
    "ollama": ("/api/chat", {"model": MODEL, "messages": ASK, "tools": TOOLS}),
}
ARGUMENTS = {"": '{"a": 1}', "repaired": '{"a": [1, 2', "invalid": '{"a": oops}'}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[LiveServer, LiveServer]]:
    """A server, and a proxy in front of it that passes conversations on."""
    with LiveServer() as server, LiveProxy(upstream=server.url) as proxy:
        yield server, proxy


def call(arguments: str) -> str:
    return f"{CALLS_BEGIN}{CALL_BEGIN}add{SEP}{arguments}{CALL_END}{CALLS_END}"


def said(raw: Any, name: str) -> set[Any]:
    """All values under a name, wherever they stand."""
    if isinstance(raw, list):
        return set().union(*(said(one, name) for one in raw))
    if not isinstance(raw, dict):
        return set()
    own = {raw[name]} if name in raw else set()
    return own.union(*(said(value, name) for value in raw.values()))


def answers(url: str, dialect: str) -> list[Any]:
    """What a dialect answers, whole and as a list of events."""
    path, body = DIALECTS[dialect]
    whole, stream = (
        httpx.post(url + path, json={**body, "stream": is_stream}, timeout=WAIT_S)
        for is_stream in (False, True)
    )
    assert whole.status_code == stream.status_code == 200, whole.text
    lines = [line.removeprefix("data: ") for line in stream.text.splitlines()]
    return [whole.json(), [json.loads(line) for line in lines if line.startswith("{")]]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("flaw", ARGUMENTS)
def test_damaged_arguments_are_told(
    servers: tuple[LiveServer, LiveServer], dialect: str, flaw: str
) -> None:
    servers[0].engine.answer = "So." + call(ARGUMENTS[flaw])
    for server in servers:
        for answer in answers(server.url, dialect):
            assert said(answer, "arguments_flaw") == ({flaw} if flaw else set()), answer
            assert said(answer, "has_stray_markup") == set()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stray", [f"Odd {CALL_END}.", f"So.{call('{}')} {SEP}"])
def test_stray_markup_is_told(
    servers: tuple[LiveServer, LiveServer], dialect: str, stray: str
) -> None:
    servers[0].engine.answer = stray
    for server in servers:
        for answer in answers(server.url, dialect):
            assert said(answer, "has_stray_markup") == {True}, answer


@pytest.mark.parametrize("dialect", DIALECTS)
def test_text_behind_a_call_that_was_left_open(
    servers: tuple[LiveServer, LiveServer], dialect: str
) -> None:
    """Such a call ends with the token that begins the text. Told behind it, its last piece came as
    one more call, without a name, which a coding agent sent back and which was refused."""
    unended = call('{"a": "b').removesuffix(f"{CALL_END}{CALLS_END}")
    servers[0].engine.answer = f"{unended}{CALLS_BEGIN}So."
    for server in servers:
        for answer in answers(server.url, dialect):
            assert said(answer, "name") == {"add"}, answer
            assert said(answer, "arguments_flaw") == {"invalid"}, answer


def test_real_clients_give_back_what_was_said_of_calls(
    servers: tuple[LiveServer, LiveServer],
) -> None:
    """Agents send an answer back with all of its fields; the model is shown the call alone."""
    url = servers[0].url
    prompts = []
    for flaw in ("repaired", ""):
        servers[0].engine.answer = call('{"a": 1' + ("" if flaw else "}"))
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
            chat = one.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
            message = chat.choices[0].message
            assert message.tool_calls is not None
            assert getattr(message.tool_calls[0], "arguments_flaw", "") == flaw
            result = {"role": "tool", "content": "1", "tool_call_id": message.tool_calls[0].id}
            again: Any = [*ASK, message.to_dict(), result]
            one.chat.completions.create(model=MODEL, messages=again, tools=TOOLS)
            prompts.append(servers[0].engine.requests[-1].prompt_ids)
            response = one.responses.create(model=MODEL, **DIALECTS["responses"][1])
            items: Any = [item.to_dict() for item in response.output]
            assert items[-1].get("arguments_flaw", "") == flaw
            one.responses.create(model=MODEL, input=[*ASK, *items], store=False)
            one.responses.create(model=MODEL, input="So?", previous_response_id=response.id)
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as two:
            with two.messages.stream(**DIALECTS["anthropic"][1]) as stream:
                streamed = stream.get_final_message()
            final = two.messages.create(**DIALECTS["anthropic"][1])
            block: Any = final.content[-1].to_dict()
            assert block["input"] == streamed.content[-1].to_dict()["input"] == {"a": 1}
            assert block.get("arguments_flaw", "") == flaw
            results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "1"}]
            turns = [
                {"role": "assistant", "content": [block]},
                {"role": "user", "content": results},
            ]
            two.messages.create(**{**DIALECTS["anthropic"][1], "messages": [*ASK, *turns]})
        with ollama.Client(host=url) as three:
            last = three.chat(model=MODEL, messages=ASK, tools=TOOLS).message
            three.chat(model=MODEL, messages=[*ASK, last, {"role": "tool", "content": "1"}])
        raw = httpx.post(url + "/api/chat", json={**DIALECTS["ollama"][1], "stream": False}).json()
        turns = [*ASK, raw["message"], {"role": "tool", "content": "1"}]
        back = {"model": MODEL, "messages": turns, "stream": False}
        assert httpx.post(f"{url}/api/chat", json=back).status_code == 200
    assert prompts[0] == prompts[1]


def test_anthropics_client_reads_any_arguments(servers: tuple[LiveServer, LiveServer]) -> None:
    """It raises where pieces are not JSON, so they come whole and known to be, unless asked for."""
    servers[0].engine.answer = call(ARGUMENTS["invalid"]) + call(ARGUMENTS[""])
    asked = DIALECTS["anthropic"][1]
    for server in servers:
        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            with client.messages.stream(**asked) as stream:
                streamed = stream.get_final_message()
            whole = client.messages.create(**asked)
        inputs = [[one.to_dict()["input"] for one in got.content] for got in (streamed, whole)]
        assert inputs[0] == inputs[1] == [{"INVALID_JSON": ARGUMENTS["invalid"]}, {"a": 1}]


@pytest.mark.parametrize("way", ["tool", "header"])
def test_arguments_stream_as_written_where_asked(
    servers: tuple[LiveServer, LiveServer], way: str
) -> None:
    servers[0].engine.answer = call(ARGUMENTS["invalid"])
    path, body = DIALECTS["anthropic"]
    tool = {**body["tools"][0], "eager_input_streaming": way == "tool"}
    beta = "fine-grained-tool-streaming-2025-05-14" if way == "header" else "another"
    answer = httpx.post(
        servers[0].url + path,
        json={**body, "tools": [tool], "stream": True},
        headers={"anthropic-beta": f"one,{beta}"},
        timeout=WAIT_S,
    )
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    pieces = [
        one["delta"]["partial_json"] for one in events if one["type"] == "content_block_delta"
    ]
    assert len(pieces) > 1
    assert "".join(pieces) == ARGUMENTS["invalid"]
