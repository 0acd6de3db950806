"""Compares, on the embedded model, what vLLM's extra fields change with the answer without them and
with the same asked in another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.server.processes import Server, serving

TEXT = "def add(first, second):\n    return first + "
CHAT: list[Any] = [{"role": "user", "content": "What is 12 + 30? Say it in a sentence, please."}]


@pytest.fixture(scope="module", params=["0", "1"], ids=["plain", "drafts"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving("--num-speculative-tokens", request.param, "--max-model-len", "512") as one:
        yield one


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(embedded_path())


def post(server: Server, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def complete(server: Server, **more: Any) -> list[int]:
    body = {"prompt": TEXT, "temperature": 0, "max_tokens": 40, "return_token_ids": True, **more}
    ids: list[int] = post(server, "completions", **body)["choices"][0]["token_ids"]
    return ids


def first_time(ids: list[int], sequences: list[tuple[int, ...]]) -> int:
    """Where the first of `sequences` is whole in `ids`."""
    ends = (
        i for i in range(len(ids)) for s in sequences if tuple(ids[i + 1 - len(s) : i + 1]) == s
    )
    return next(ends, len(ids))


def test_bad_words_do_not_come(server: Server, tokenizer: Tokenizer) -> None:
    """As the words are tokenised; up to the first of them nothing changes."""
    free, num_hits = complete(server), 0
    for length in (1, 2, 3):
        word = tokenizer.decode(free[4 : 4 + length]).strip()
        if not word:
            continue
        spelt = [tokenizer.encode(word), tokenizer.encode(f" {word}")]
        kept = complete(server, bad_words=[word])
        at = first_time(free, spelt)
        assert first_time(kept, spelt) == len(kept)
        assert kept[:at] == free[:at]
        if at < len(free):
            assert kept[at] != free[at]
            num_hits += 1
    assert num_hits
    # A form goes before: its only way on is taken.
    form = {"regex": "(yes)"}
    told = post(server, "completions", prompt=TEXT, bad_words=["yes", "y", "e", "s"], **form)
    assert told["choices"][0]["text"] == "yes"


def test_only_allowed_tokens_come(server: Server, tokenizer: Tokenizer) -> None:
    free = complete(server)
    assert complete(server, allowed_token_ids=list(range(tokenizer.vocab_size))) == free
    few = sorted({*free[:3], *tokenizer.encode("one two")})
    for seed in range(3):
        told = complete(server, allowed_token_ids=few, temperature=1.5, seed=seed)
        assert set(told) <= set(few)
        assert len(told) == 40
    digits = {i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) in list("0123456789")}
    told = complete(server, allowed_token_ids=[*digits], regex="[0-9a-z]{4}")
    assert set(told) - {*tokenizer.eos_ids} <= digits


def test_a_prompt_is_cut_in_front(server: Server, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert complete(server, truncate_prompt_tokens=5) == complete(server, prompt=ids[-5:])
    assert complete(server, truncate_prompt_tokens=-1) == complete(server)
    long = [{"role": "user", "content": "word " * 900}]
    told = post(server, "chat/completions", messages=long, truncate_prompt_tokens=-1, max_tokens=7)
    assert told["usage"]["completion_tokens"] <= 7
    whole = post(server, "chat/completions", messages=CHAT, max_tokens=9, temperature=0)
    half = {"messages": CHAT, "max_tokens": 9, "temperature": 0, "truncate_prompt_tokens": 9}
    cut = post(server, "chat/completions", **half, return_token_ids=True)
    assert cut["usage"]["prompt_tokens"] == 9 < whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_can_be_left_out(server: Server, stream: bool) -> None:
    body = {"messages": CHAT, "thinking": True, "temperature": 0, "max_tokens": 60}
    body["thinking_token_budget"] = 10
    shown = post(server, "chat/completions", **body)
    assert shown["choices"][0]["message"]["reasoning_content"]
    if stream:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={**body, "include_reasoning": False, "stream": True},
            timeout=60,
        )
        assert "reasoning_content" not in answer.text
        return
    hidden = post(server, "chat/completions", **body, include_reasoning=False)
    message = hidden["choices"][0]["message"]
    assert not {"reasoning", "reasoning_content"} & set(message)
    assert message["content"] == shown["choices"][0]["message"]["content"]
    assert hidden["usage"]["completion_tokens"] == shown["usage"]["completion_tokens"]


def test_a_continued_message_can_be_echoed(server: Server) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "The answer", "prefix": True}]
    body = {"messages": begun, "temperature": 0, "max_tokens": 8}
    plain = post(server, "chat/completions", **body)["choices"][0]["message"]["content"]
    echoed = post(server, "chat/completions", **body, echo=True)["choices"][0]["message"]
    assert echoed["content"] == f"The answer{plain}"
    new = post(server, "chat/completions", messages=CHAT, temperature=0, max_tokens=8, echo=True)
    old = post(server, "chat/completions", messages=CHAT, temperature=0, max_tokens=8)
    assert new["choices"][0]["message"] == old["choices"][0]["message"]
