"""Compares what the real `ollama` client reads with what a scripted engine was told to say, and the
prompts that its requests become with those of the same conversations in OpenAI's form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest

from fathom.weights.embedded import embedded_path
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import CONTEXT, MODEL, call_text

ASK: list[Any] = [{"role": "user", "content": "What is the answer?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = call_text(("add", '{"a": 1}'))


@pytest.fixture
def client(server: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as one:
        yield one


def openai_prompt(server: LiveServer, **asked: Any) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        other.chat.completions.create(model=MODEL, **asked)
    return server.prompt()


def test_chat_whole_and_streamed_agree(client: ollama.Client, server: LiveServer) -> None:
    server.engine.answer = f"Hm.</think>Adding.{CALL}"
    asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "tools": [TOOL], "think": True}
    whole = client.chat(**asked)
    parts = list(client.chat(**asked, stream=True))
    assert whole.message.content == "".join(p.message.content or "" for p in parts) == "Adding."
    assert whole.message.thinking == "".join(p.message.thinking or "" for p in parts) == "Hm."
    for message in (whole.message, parts[-1].message):
        assert message.tool_calls is not None
        assert [dict(call.function) for call in message.tool_calls] == [
            {"name": "add", "arguments": {"a": 1}}
        ]
    assert [part.done for part in parts] == [*[False] * (len(parts) - 1), True]
    for last in (whole, parts[-1]):
        assert last.done_reason == "stop"
        assert last.eval_count == whole.eval_count
        assert last.prompt_eval_count == len(server.engine.requests[-1].prompt_ids)
        assert last.total_duration is not None
        assert last.prompt_eval_duration is not None
        assert last.eval_duration is not None
        assert last.total_duration == last.prompt_eval_duration + last.eval_duration > 0


def test_lines_and_their_type(server: LiveServer) -> None:
    response = httpx.post(f"{server.url}/api/generate", json={"model": MODEL, "prompt": "Hi"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(line["response"] for line in lines) == "The answer is 42."
    assert lines[-1]["done"]
    assert lines[-1]["think"] is False


def test_generate_is_a_conversation(client: ollama.Client, server: LiveServer) -> None:
    answer = client.generate(model=f"{MODEL}:latest", prompt="Hi", system="Be brief.")
    assert answer.response == "The answer is 42."
    ours = server.prompt()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert ours == openai_prompt(server, messages=messages)


def test_raw_and_infill(client: ollama.Client, server: LiveServer) -> None:
    client.generate(model=MODEL, prompt="Once upon", raw=True)
    assert server.prompt() == "Once upon"
    client.generate(model=MODEL, prompt="def f(", suffix="return 1")
    assert "fim▁hole" in server.prompt()


def test_a_conversation_with_tools_is_openais(client: ollama.Client, server: LiveServer) -> None:
    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}]
    client.chat(
        model=MODEL,
        tools=[TOOL],
        messages=[
            *ASK,
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
            {"role": "tool", "content": "2", "tool_name": "add"},
        ],
    )
    ours = server.prompt()
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "a"},
    ]
    assert ours == openai_prompt(server, tools=[TOOL], messages=messages)


def test_options_reach_the_engine(client: ollama.Client, server: LiveServer) -> None:
    answer = client.generate(
        model=MODEL,
        prompt="Hi",
        keep_alive="5m",
        logprobs=True,
        top_logprobs=2,
        options={
            "num_predict": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.8, "min_p": 0.1, "seed": 4,
            "stop": ["x"], "repeat_penalty": 1.1, "presence_penalty": 0.2,
            "frequency_penalty": 0.3, "num_ctx": CONTEXT,
        },
    )  # fmt: skip
    assert answer.done_reason == "length"
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 2
    assert len(answer.logprobs[0].top_logprobs or []) == 2
    sampling = server.engine.requests[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (2, 0.5, 3)
    assert (sampling.top_p, sampling.min_p, sampling.seed, sampling.stop) == (0.8, 0.1, 4, ("x",))
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.1, 0.2)
    assert sampling.frequency_penalty == 0.3
    client.generate(model=MODEL, prompt="Hi", options={"num_predict": -1})
    unlimited = server.engine.requests[-1]
    assert unlimited.sampling.max_tokens == CONTEXT - len(unlimited.prompt_ids)


def test_nothing_asked_is_a_load(client: ollama.Client) -> None:
    assert client.generate(model=MODEL).done_reason == "load"
    assert client.chat(model=MODEL, messages=[]).done_reason == "load"
    assert [part.done_reason for part in client.generate(model=MODEL, stream=True)] == ["load"]


def test_what_is_known_of_the_model(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [MODEL, "second-name"]
    running = client.ps().models[0]
    assert running.context_length == CONTEXT
    # Ollama's own program cuts digests to their first 12 letters, and counts down to an end.
    assert re.fullmatch("[0-9a-f]{64}", running.digest or "")
    assert {model.digest for model in client.list().models} == {running.digest}
    assert running.expires_at is not None
    assert running.expires_at.year == 9999
    shown = client.show(f"{MODEL}:latest")
    assert shown.capabilities == ["completion", "insert", "tools", "thinking"]
    assert shown.details is not None
    assert shown.details.format == "safetensors"
    assert shown.modelinfo is not None
    config = json.loads((embedded_path() / "config.json").read_text())
    family = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{family}.embedding_length"] == config["hidden_size"]
    assert shown.modelinfo[f"{family}.vocab_size"] == config["vocab_size"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"zzz": 1}, "zzz"),
        ({"format": "yaml"}, "format"),
        ({"options": {"num_gpu": 1}}, "options.num_gpu"),
        ({"options": {"num_ctx": CONTEXT + 1}}, "options.num_ctx"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
        ({"options": {"temprature": 1}}, "temperature"),
        ({"messages": [{"role": "user", "content": "?", "images": ["aa"]}]}, "messages[0].images"),
        ({"keep_alive": 0}, "keep_alive"),
        ({"think": "hard"}, "think"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"model": "other"}, "other"),
    ],
)
def test_what_is_not_honoured_is_named(server: LiveServer, change: Any, named: str) -> None:
    body = {"model": MODEL, "messages": ASK, **change}
    response = httpx.post(f"{server.url}/api/chat", json=body)
    assert response.status_code == (404 if "model" in change else 400)
    assert set(response.json()) == {"error"}
    assert named in response.json()["error"]


def test_an_answer_follows_a_call_without_a_result(server: LiveServer) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    body = {"model": MODEL, "messages": [*ASK, call], "stream": False}
    response = httpx.post(f"{server.url}/api/chat", json=body)
    assert response.json()["message"]["content"] == "The answer is 42."


def test_details_that_are_not_given_are_refused(server: LiveServer) -> None:
    for verbose, status in ((False, 200), (True, 400)):
        body = {"model": MODEL, "verbose": verbose}
        assert httpx.post(f"{server.url}/api/show", json=body).status_code == status


def test_a_failure_in_mid_stream_is_a_line(client: ollama.Client, server: LiveServer) -> None:
    server.engine.fails_after = 2
    with pytest.raises(ollama.ResponseError, match="told to die"):
        list(client.chat(model=MODEL, messages=ASK, stream=True))


def test_silence_is_not_filled(server: LiveServer) -> None:
    """Every line is a record, and clients read no others."""
    server.engine.step_s = 0.5
    body = {"model": MODEL, "prompt": "Hi", "options": {"num_predict": 2}}
    lines = httpx.post(f"{server.url}/api/generate", json=body).text.splitlines()
    assert all(json.loads(line)["model"] == MODEL for line in lines)
