"""Compares what the real `openai` client reads of /v1/responses with what a scripted engine says,
and the prompts with those of the same conversations in /v1/chat/completions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fathom.errors import ConfigError
from fathom.server.config import ServerConfig
from fathom.server.responses.store import MAX_BYTES, Kept, ResponseStore
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL, call_text

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "add",
    "description": "Adds",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": False,
}
FUNCTION = {"type": "function", "function": {k: TOOL[k] for k in TOOL if k != "type"}}
CALLS = "Adding." + call_text(("add", '{"a": 1}'), ("add", '{"a": 2}'))


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="What is the answer?", instructions="Hm.")
    assert answer.output_text == "The answer is 42."
    assert answer.status == "completed"
    assert [item.type for item in answer.output] == ["message"]
    counted = client.responses.input_tokens.count(
        model=MODEL, input="What is the answer?", instructions="Hm."
    )
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens
    cut = client.responses.create(model=MODEL, input="?", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_whole_and_streamed_agree(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = f"Hm.</think>{CALLS}"
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "?",
        "tools": [TOOL],
        "reasoning": {"effort": "high"},
    }
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    kinds = [item.type for item in whole.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    for one in (whole, streamed):
        reasoning, message, *calls = one.output
        assert reasoning.content[0].text == "Hm."  # type: ignore
        assert message.content[0].text == one.output_text == "Adding."  # type: ignore
        assert [json.loads(call.arguments) for call in calls] == [{"a": 1}, {"a": 2}]  # type: ignore
        assert one.usage is not None
        assert one.usage.output_tokens_details.reasoning_tokens > 0
        assert one.thinking == {"type": "enabled"}  # type: ignore[union-attr]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    for begun, done in (
        ("response.output_item.added", "response.output_item.done"),
        ("response.content_part.added", "response.content_part.done"),
    ):
        of_kind = [event for event in events if event.type in (begun, done)]
        assert [event.type for event in of_kind] == [begun, done] * (len(of_kind) // 2)
    text = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(text) == "Adding."
    assert client.responses.retrieve(streamed.id).output_text == "Adding."


def test_logprobs_are_those_of_the_text(client: openai.OpenAI, server: LiveServer) -> None:
    """What chat says of all tokens, /v1/responses says of those of the answer proper."""
    server.engine.answer = f"Hm, ☃.</think>\n\nIt is 42 ☃. {CALLS}"
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "?",
        "tools": [TOOL],
        "reasoning": {"effort": "high"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = [event for event in stream if event.type == "response.output_text.delta"]
    part = whole.output[1].content[0]  # type: ignore[union-attr]
    rows = part.logprobs  # type: ignore[union-attr]
    assert rows is not None
    assert b"".join(bytes(row.bytes) for row in rows).decode() == part.text  # type: ignore
    assert all(len(row.top_logprobs) == 2 for row in rows)
    streamed = [row.token for event in events for row in event.logprobs]
    assert streamed == [row.token for row in rows]
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "?"}],
        tools=[FUNCTION],  # type: ignore[list-item]
        logprobs=True,
        top_logprobs=2,
        extra_body={"thinking": True},
    ).choices[0]
    assert chat.logprobs is not None
    scored = [row.to_dict() for row in chat.logprobs.content or ()]
    ours = [row.to_dict() for row in rows]
    assert any(scored[i : i + len(ours)] == ours for i in range(len(scored)))
    again = client.responses.create(model=MODEL, input="?", previous_response_id=whole.id)
    assert again.output_text
    server.engine.answer = "The answer is 42."
    plain = client.responses.create(model=MODEL, input="?")
    assert plain.output[0].content[0].logprobs == []  # type: ignore[union-attr]


def test_a_conversation_goes_on_from_what_was_kept(
    client: openai.OpenAI, server: LiveServer
) -> None:
    server.engine.answer = CALLS
    first = client.responses.create(model=MODEL, input="1 and 2?", tools=[TOOL])  # type: ignore
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "ok"}
        for call in first.output[1:]
    ]
    server.engine.answer = "Done."
    second = client.responses.create(
        model=MODEL,
        input=results,
        tools=[TOOL],
        previous_response_id=first.id,  # type: ignore
    )
    third = client.responses.create(
        model=MODEL,
        input="Thanks.",
        tools=[TOOL],
        previous_response_id=second.id,  # type: ignore
    )
    kept = server.prompt()
    whole: Any = [
        {"role": "user", "content": "1 and 2?"},
        *[item.to_dict() for item in first.output],
        *results,
        *[item.to_dict() for item in second.output],
        {"role": "user", "content": [{"type": "input_text", "text": "Thanks."}]},
    ]
    client.responses.create(model=MODEL, input=whole, tools=[TOOL], store=False)  # type: ignore
    assert server.prompt() == kept
    calls = [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": arguments}}
        for arguments in ('{"a": 1}', '{"a": 2}')
    ]
    client.chat.completions.create(
        model=MODEL,
        tools=[FUNCTION],  # type: ignore[list-item]
        messages=[
            {"role": "user", "content": "1 and 2?"},
            {"role": "assistant", "content": "Adding.", "tool_calls": calls},  # type: ignore
            {"role": "tool", "tool_call_id": "a", "content": "ok"},
            {"role": "tool", "tool_call_id": "a", "content": "ok"},
            {"role": "assistant", "content": "Done."},
            {"role": "user", "content": "Thanks."},
        ],
    )
    assert server.prompt() == kept
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["function_call_output"] * 2
    page = client.responses.input_items.list(second.id, order="asc", limit=1)
    assert page.has_more
    assert [item.id for item in page] == [item.id for item in items]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="?", previous_response_id=third.id)


def test_items_get_ids_where_they_have_none(client: openai.OpenAI) -> None:
    said: list[Any] = [
        {"role": "user", "content": str(number), **more}
        for number, more in enumerate([{}, {"id": None}, {"id": ""}, {"id": "mine"}])
    ]
    answer = client.responses.create(model=MODEL, input=said)
    listed: Any = client.responses.input_items.list(answer.id, order="asc", limit=3)
    assert [item.content for item in listed] == list("0123")
    ids = [item.id for item in listed]
    assert all(ids)
    assert len(set(ids)) == 4
    assert ids[3] == "mine"


def test_what_is_not_kept_is_not_found(client: openai.OpenAI) -> None:
    gone = client.responses.create(model=MODEL, input="?", store=False)
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(gone.id)


def test_only_the_key_that_asked_finds_an_answer() -> None:
    with LiveServer(ServerConfig(port=0, api_key=("one", "two"))) as live:
        url = f"{live.url}/v1"
        with openai.OpenAI(base_url=url, api_key="one") as one:
            kept = one.responses.create(model=MODEL, input="?").id
            assert one.responses.retrieve(kept).id == kept
        with openai.OpenAI(base_url=url, api_key="two") as two:
            with pytest.raises(openai.NotFoundError):
                two.responses.retrieve(kept)
            with pytest.raises(openai.NotFoundError):
                two.responses.create(model=MODEL, input="?", previous_response_id=kept)


def kept(name: str, text: str = "", previous: str | None = None) -> Kept:
    return Kept({"id": name, "previous_response_id": previous, "text": text}, [])


def test_answers_are_kept_for_their_time_and_across_a_restart(tmp_path: Path) -> None:
    now_s = [0.0]
    path = str(tmp_path / "responses.db")
    store = ResponseStore(path, 10.0, lambda: now_s[0])
    store.put("me", kept("a"))
    now_s[0] = 6.0
    store.put("me", kept("b", previous="a"))
    store.close()
    store = ResponseStore(path, 10.0, lambda: now_s[0])
    chain = store.chain("me", "b")
    assert chain is not None
    assert [one.response["id"] for one in chain] == ["a", "b"]
    assert store.chain("you", "b") is None
    now_s[0] = 12.0
    assert store.get("me", "a") is None
    assert store.get("me", "b") is not None
    assert store.chain("me", "b") is None
    assert not store.delete("me", "a")
    store.close()


def test_the_oldest_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BYTES > 2**20
    monkeypatch.setattr("fathom.server.responses.store.MAX_BYTES", 2500)
    store = ResponseStore(None, 10.0, lambda: 0.0)
    for name in "abcd":
        store.put("", kept(name, "x" * 1000))
    assert [name for name in "abcd" if store.get("", name)] == ["c", "d"]
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="responses-db"):
        ResponseStore(str(tmp_path / "missing" / "x.db"), 1.0, lambda: 0.0)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"zzz": 1}, "zzz"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "add"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}},
            "tool_choice.type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "word " * 600}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "?"}]}, "input"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 99}, "top_logprobs"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"reasoning": {"effort": "none"}, "enable_thinking": True}, "enable_thinking"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
def test_what_is_not_honoured_is_named(server: LiveServer, change: Any, param: str) -> None:
    response = httpx.post(
        f"{server.url}/v1/responses", json={"model": MODEL, "input": "?", **change}
    )
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"background": True}, "background"), ({"conversation": "c"}, "previous_response_id")],
)
def test_the_refusal_says_what_there_is_instead(server: LiveServer, change: Any, why: str) -> None:
    body = {"model": MODEL, "input": "?", **change}
    error = httpx.post(f"{server.url}/v1/responses", json=body).json()["error"]
    assert error["code"] == "unsupported_parameter"
    assert why in error["message"]


def test_what_a_coding_agent_sends(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL,
        instructions="You are an agent.",
        input=[
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
        ],
        tools=[TOOL],  # type: ignore[list-item]
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="session",
    )
    assert [text.split(":")[0] for text in answer.warnings] == [  # type: ignore[attr-defined]
        "reasoning.summary",
        "include",
    ]


def test_a_failure_in_mid_stream_is_an_event(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.fails_after = 2
    with pytest.raises(openai.APIError, match="told to die"):
        list(client.responses.create(model=MODEL, input="?", stream=True))


def test_an_answer_is_told_where_it_cannot_be_kept(tmp_path: Path) -> None:
    """Another process that held the file froze the server for five seconds an answer, which was
    thrown away for a 500 then; so did a full disk."""
    path = tmp_path / "kept.db"
    config = ServerConfig(port=0, responses_db=str(path))
    with LiveServer(config) as server, httpx.Client(base_url=f"{server.url}/v1") as client:
        first = client.post("/responses", json={"input": "?"}).json()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        answer = client.post("/responses", json={"input": "?"}).json()
        assert answer["output"][0]["content"] == first["output"][0]["content"]
        assert (first["store"], answer["store"]) == (True, False)
        assert "locked" in answer["warnings"][0]
        streamed = client.post("/responses", json={"input": "?", "stream": True}).text
        last = json.loads(streamed.split("data: ")[-1])
        assert (last["type"], last["response"]["store"]) == ("response.completed", False)
        assert client.delete(f"/responses/{first['id']}").status_code == 503
        other.execute("ROLLBACK")
        other.close()
        assert client.get(f"/responses/{answer['id']}").status_code == 404
        assert client.delete(f"/responses/{first['id']}").status_code == 200
