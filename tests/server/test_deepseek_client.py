"""Compares what the real `openai` client reads under DeepSeek's base URLs with what a scripted
engine was told to say."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL


@pytest.fixture(params=["", "/beta"])
def client(server: LiveServer, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    url = server.url + request.param
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one


def test_chat_counts_the_cache(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = "Hm.</think>42"
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the answer to everything, and why?"}],
        extra_body={"thinking": {"type": "enabled"}},
    )
    assert answer.choices[0].message.reasoning_content == "Hm."  # type: ignore[attr-defined]
    assert answer.thinking == {"type": "enabled"}  # type: ignore[attr-defined]
    usage = answer.usage
    assert usage is not None
    hit, miss = usage.prompt_cache_hit_tokens, usage.prompt_cache_miss_tokens  # type: ignore
    assert hit == 16
    assert hit + miss == usage.prompt_tokens


def test_prefix_is_continued(client: openai.OpenAI, server: LiveServer) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": "Code, please."},
            {"role": "assistant", "content": "```python\n", "prefix": True},  # type: ignore
        ],
        stop=["```"],
    )
    text = server.engine.tokenizer.decode(server.engine.requests[-1].prompt_ids)
    assert text.endswith("```python\n")


@pytest.mark.parametrize("is_stream", [False, True])
def test_fill_in_the_middle(client: openai.OpenAI, server: LiveServer, is_stream: bool) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="def fib(a):", suffix="    return b", max_tokens=64, stream=is_stream
    )
    chunks = list(answer) if is_stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "The answer is 42."
    assert "fim▁hole" in server.engine.tokenizer.decode(server.engine.requests[-1].prompt_ids)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "second-name"]


def test_no_balance_is_invented(server: LiveServer) -> None:
    told = httpx.get(f"{server.url}/user/balance").json()
    assert told == {"is_available": True, "balance_infos": []}
