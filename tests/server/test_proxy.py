"""Compares a proxy with the server behind it, in every dialect and with their real clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.server.live_server import LiveServer
from tests.server.proxying import (
    ASK,
    CALLS,
    CHAT,
    FILES,
    TOOLS,
    LiveProxy,
    events,
    told,
    whole,
)
from tests.server.scripted_engine import MODEL

CALL = f"Let me see.{CALLS}"
DAMAGED = "Stray<｜tool▁call▁end｜>. " + CALL.replace("}", "")
ANSWERS = (
    "The answer is 42.",
    f"Adding both.</think>{CALL}",
    f"Adding both.</think>{DAMAGED}",
    "12 + 30</think>\n\nIt is 42 ☃.",
)


@pytest.fixture(scope="module", params=ANSWERS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A server, and a proxy in front of it that has the tokenizer."""
    with (
        LiveServer(answer=request.param) as server,
        LiveProxy(upstream=f"{server.url}/v1", tokenizer=FILES) as proxy,
    ):
        yield server.url, proxy.url


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "thinking": ("/v1/chat/completions", {**CHAT, "thinking": True}),
    "tools": ("/v1/chat/completions", {**CHAT, "thinking": True, "tools": TOOLS}),
    "scores": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3}),
    "choices": ("/v1/chat/completions", {**CHAT, "n": 3, "return_token_ids": True}),
    "stop": ("/v1/chat/completions", {**CHAT, "stop": ["wer", "30"], "thinking": False}),
    "length": ("/v1/chat/completions", {**CHAT, "max_tokens": 2}),
    "deepseek": ("/chat/completions", {**CHAT, "thinking": {"type": "enabled"}}),
    "prefix": (
        "/beta/chat/completions",
        {"messages": [*ASK, {"role": "assistant", "content": "It", "prefix": True}]},
    ),
    "completions": ("/v1/completions", {"prompt": ["a b", "c"], "logprobs": 2, "max_tokens": 30}),
    "echo": ("/v1/completions", {"prompt": [5, 6, 7], "echo": True, "return_token_ids": True}),
    "prompt scores": (
        "/v1/completions",
        {"prompt": ["a b c", "d"], "echo": True, "logprobs": 2, "n": 2, "stop": "wer"},
    ),
    "only prompt scores": (
        "/v1/completions",
        {"prompt": "a b c", "prompt_logprobs": 0, "max_tokens": 1},
    ),
    "chat prompt scores": ("/v1/chat/completions", {**CHAT, "prompt_logprobs": 1}),
    "responses": ("/v1/responses", {"input": "What?", "store": False}),
    "responses scores": (
        "/v1/responses",
        {
            "input": "What?",
            "store": False,
            "reasoning": {"effort": "high"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
        },
    ),
    "messages": (
        "/v1/messages",
        {"model": MODEL, "max_tokens": 40, "messages": ASK, "thinking": {"type": "adaptive"}},
    ),
    "ollama": ("/api/chat", {"model": MODEL, "messages": ASK, "think": True, "tools": TOOLS}),
    "ollama generate": ("/api/generate", {"model": MODEL, "prompt": "a"}),
    "sglang prompt scores": (
        "/generate",
        {"text": "a b", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1},
    ),
    "sglang": ("/generate", {"text": "a b", "return_logprob": True, "top_logprobs_num": 2}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_proxy_with_a_tokenizer_answers_as_the_server_does(
    name: str, pair: tuple[str, str]
) -> None:
    path, body = REQUESTS[name]
    server, proxy = (whole(url, path, body) for url in pair)
    if name == "stop":
        # What was cached comes with the upstream's end, and a stop string hangs up before it.
        for one in (server, proxy):
            for key in ("prompt_tokens_details", *(f"prompt_cache_{w}_tokens" for w in WHERE)):
                del one["usage"][key]
    assert proxy == server
    server, proxy = (_joined(events(url, path, body)) for url in pair)
    if path == "/generate":  # each event says all so far: how many there are is the text's
        server, proxy = server[1], proxy[1]
    assert proxy == server


WHERE = ("hit", "miss")


def _joined(told_events: list[Any]) -> tuple[dict[int, str], Any]:
    """All text of each choice of a stream, and its last event."""
    texts: dict[int, str] = {}
    choice = 0

    def walk(raw: Any, name: str = "") -> None:
        if isinstance(raw, dict):
            for key, value in raw.items():
                walk(value, key)
        elif isinstance(raw, list):
            for value in raw:
                walk(value, name)
        elif isinstance(raw, str) and name in ("content", "delta", "text", "arguments", "thinking"):
            texts[choice] = texts.get(choice, "") + raw

    for event in told_events:
        choice = event["choices"][0]["index"] if event.get("choices") else 0
        walk(event)
    return texts, None if len(texts) > 1 else told_events[-1]


def test_counting_and_tokenizing_need_no_upstream(pair: tuple[str, str]) -> None:
    for path, body in (
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": ASK}),
        ("/tokenize", {"messages": ASK}),
        ("/detokenize", {"tokens": [5, 6]}),
        ("/v1/responses/input_tokens", {"input": "What?"}),
    ):
        first, second = (httpx.post(url + path, json=body) for url in pair)
        assert first.status_code == 200
        assert first.json() == second.json()


@pytest.mark.parametrize("flags", [{"tokenizer": FILES}, {}], ids=["tokens", "conversations"])
def test_real_clients(flags: dict[str, Any]) -> None:
    """Both ways give the same texts where the upstream parts its answers itself."""
    with (
        LiveServer(answer="12 + 30</think>\n\nIt is 42 ☃.") as server,
        LiveProxy(upstream=server.url, served_model_name=("mine",), **flags) as proxy,
    ):
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as one:
            assert one.models.list().data[0].id == "mine"
            asked = {"messages": ASK, "thinking": True}
            direct = whole(server.url, "/v1/chat/completions", asked)["usage"]
            chat = one.chat.completions.create(
                model="mine", messages=ASK, extra_body={"thinking": True}
            )
            stream = one.chat.completions.create(
                model="mine", messages=ASK, extra_body={"thinking": True}, stream=True
            )
            streamed = "".join(c.choices[0].delta.content or "" for c in stream)
            response = one.responses.create(
                model="mine", input="What?", reasoning={"effort": "high"}
            )
        with anthropic.Anthropic(base_url=proxy.url, api_key="none", max_retries=0) as two:
            wish: Any = {
                "model": "mine", "max_tokens": 50, "messages": ASK, "thinking": {"type": "adaptive"}
            }  # fmt: skip
            message = two.messages.create(**wish)
            with two.messages.stream(**wish) as live:
                final = live.get_final_message()
        with ollama.Client(host=proxy.url) as three:
            last = three.chat(model="mine", messages=ASK, think=True)
    assert chat.choices[0].message.content == streamed == response.output_text == "It is 42 ☃."
    assert chat.choices[0].message.reasoning_content == "12 + 30"  # type: ignore[attr-defined]
    assert chat.usage is not None
    assert told(chat.usage.model_dump(exclude_unset=True)) == direct
    assert final.usage.output_tokens == direct["completion_tokens"]
    for blocks in (message.content, final.content):
        kinds = [block.type for block in blocks]
        assert kinds == ["thinking", "text"]
    assert last.message.thinking == "12 + 30"
    assert last.message.content == "It is 42 ☃."
