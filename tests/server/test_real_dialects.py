"""Compares, on the embedded model, the dialects with each other, an answer of limited reasoning
with one without a limit, and the prefix cache before and after it is flushed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import anthropic
import httpx
import ollama
import openai
import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import Field

from fathom.text.markers import END_THINK
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.server.processes import Server, serving

ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30? Say it in a sentence, please."}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


def test_dialects_agree(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as one:
        model = one.models.list().data[0].id
        chat = one.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=24)
        response = one.responses.create(
            model=model, input=ASK[0]["content"], temperature=0, max_output_tokens=24
        )
    with anthropic.Anthropic(base_url=server.url, api_key="none") as two:
        message = two.messages.create(
            model=model, messages=ASK, max_tokens=24, extra_body={"temperature": 0}
        )
    with ollama.Client(host=server.url) as three:
        options = {"temperature": 0, "num_predict": 24}
        last = three.chat(model=model, messages=ASK, options=options)
    text = chat.choices[0].message.content
    assert text
    assert response.output_text == text
    assert message.content[0].text == text  # type: ignore[union-attr]
    assert last.message.content == text
    for by_responses in (False, True):
        llm = chain(server, model, max_tokens=24, use_responses_api=by_responses)
        assert llm.invoke(ASK).text == text
        assert "".join(piece.text for piece in llm.stream(ASK)) == text


def chain(server: Server, model: str, **more: Any) -> ChatOpenAI:
    """LangChain's client."""
    url = f"{server.url}/v1"
    return ChatOpenAI(model=model, base_url=url, api_key="none", temperature=0, **more)


@pytest.mark.parametrize("by_responses", [False, True])
def test_langchain_calls_a_tool_and_goes_on(server: Server, by_responses: bool) -> None:
    @tool
    def add(a: Annotated[int, Field(ge=0, lt=100)], b: Annotated[int, Field(ge=0, lt=100)]) -> int:
        """Adds two numbers."""
        return a + b

    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    llm = chain(server, model, max_tokens=80, use_responses_api=by_responses)
    forced = llm.bind_tools([add], tool_choice="add", strict=True)
    whole = forced.invoke(ASK)
    (call,) = whole.tool_calls
    streamed: Any = None
    for piece in forced.stream(ASK):
        streamed = piece if streamed is None else streamed + piece
    (again,) = streamed.tool_calls
    assert again["args"] == call["args"]
    result = ToolMessage(str(add.invoke(again["args"])), tool_call_id=again["id"])
    assert llm.invoke([*ASK, streamed, result]).text


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_reasoning_ends_at_its_budget(server: Server, budget: int) -> None:
    def ask(**more: Any) -> tuple[list[int], Any]:
        body = {
            "messages": ASK, "temperature": 0, "max_tokens": 24, "thinking": True,
            "return_token_ids": True, **more,
        }  # fmt: skip
        told = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        return told["choices"][0]["token_ids"], told

    end = Tokenizer.load(embedded_path()).special_ids[END_THINK]
    free, _ = ask()
    limited, told = ask(thinking_token_budget=budget)
    closes = free.index(end) if end in free else len(free)
    assert limited[: budget + 1] == (
        free[: budget + 1] if closes <= budget else [*free[:budget], end]
    )
    assert limited.count(end) == 1
    reasoning = told["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert reasoning == min(budget, closes)
    assert told["thinking"] == {"type": "enabled", "budget_tokens": budget}


def test_a_flush_forgets_prefixes(server: Server) -> None:
    def cached() -> int:
        body = {"prompt": "word " * 200, "max_tokens": 1}
        told = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        return int(told["usage"]["prompt_cache_hit_tokens"])

    cached()
    assert cached() > 0
    assert httpx.post(f"{server.url}/flush_cache").status_code == 200
    assert cached() == 0
    assert cached() > 0
