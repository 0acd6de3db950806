"""Compares what the real `openai` client reads with what a scripted engine was told to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL, call_text, overloaded

ASK = [{"role": "user", "content": "What is the answer?"}]


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == "The answer is 42."
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens
    assert usage.prompt_cache_hit_tokens == cached  # type: ignore[attr-defined]
    assert usage.prompt_cache_miss_tokens == usage.prompt_tokens - cached  # type: ignore


def test_chat_stream_has_role_text_finish_and_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "The answer is 42."
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_whole_and_streamed_agree(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = "First I think.</think>Then 你好 I say 🙂 so."
    asked = {"model": MODEL, "messages": ASK, "extra_body": {"thinking": {"type": "enabled"}}}
    whole = client.chat.completions.create(**asked).choices[0].message  # type: ignore[call-overload]
    pieces = [
        chunk.choices[0].delta
        for chunk in client.chat.completions.create(**asked, stream=True)  # type: ignore
        if chunk.choices
    ]
    assert whole.content == "Then 你好 I say 🙂 so."
    assert whole.reasoning_content == whole.reasoning == "First I think."
    assert "".join(p.content or "" for p in pieces) == whole.content
    assert "".join(getattr(p, "reasoning_content", None) or "" for p in pieces) == "First I think."
    assert "".join(getattr(p, "reasoning", None) or "" for p in pieces) == "First I think."


def test_reasoning_tokens_are_counted(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = "Hm.</think>Yes."
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, extra_body={"chat_template_kwargs": {"thinking": True}}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    expected = len(server.engine.tokenizer.encode("Hm."))
    assert answer.usage.completion_tokens_details.reasoning_tokens == expected


@pytest.mark.parametrize("is_stream", [False, True])
def test_tool_calls(client: openai.OpenAI, server: LiveServer, is_stream: bool) -> None:
    server.engine.answer = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>'
        '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    asked = {"model": MODEL, "messages": ASK, "tools": [tool]}
    if not is_stream:
        choice = client.chat.completions.create(**asked).choices[0]  # type: ignore[call-overload]
        calls = [(c.function.name, c.function.arguments, c.id) for c in choice.message.tool_calls]
        reason, content = choice.finish_reason, choice.message.content
    else:
        told: dict[int, list[str]] = {}
        content = None
        for chunk in client.chat.completions.create(**asked, stream=True):  # type: ignore
            for call in chunk.choices[0].delta.tool_calls or ():
                one = told.setdefault(call.index, ["", "", ""])
                one[0] += call.function.name or ""
                one[1] += call.function.arguments or ""
                one[2] += call.id or ""
            reason = chunk.choices[0].finish_reason
        calls = [tuple(one) for _, one in sorted(told.items())]
    assert [call[:2] for call in calls] == [
        ("weather", '{"city": "Paris"}'),
        ("weather", '{"city": "Rome"}'),
    ]
    assert len({call[2] for call in calls}) == 2
    assert reason == "tool_calls"
    assert content is None


def test_one_call_only_without_parallel_tool_calls(
    client: openai.OpenAI, server: LiveServer
) -> None:
    server.engine.answer = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASK,  # type: ignore[arg-type]
        tools=[{"type": "function", "function": {"name": "a"}}],
        parallel_tool_calls=False,
    )
    assert [c.function.name for c in answer.choices[0].message.tool_calls or ()] == ["a"]  # type: ignore


def test_what_the_client_parsed_comes_back(client: openai.OpenAI, server: LiveServer) -> None:
    """The client sends its own reading of an answer back with it, for nobody."""

    class Weather(BaseModel):
        city: str

    server.engine.answer = call_text(("Weather", '{"city": "Rome"}'))
    tools = [openai.pydantic_function_tool(Weather)]
    asked: dict[str, Any] = {"model": MODEL, "tools": tools, "tool_choice": "required"}
    message = client.chat.completions.parse(messages=ASK, **asked).choices[0].message
    (call,) = message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(city="Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "hot"}
    talk: list[Any] = [*ASK, message, result]
    client.chat.completions.parse(messages=talk, **asked)
    assert call_text(("Weather", '{"city": "Rome"}')) in server.prompt()


def test_logprobs(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, top_logprobs=3, max_tokens=4
    )
    assert answer.choices[0].finish_reason == "length"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert all(len(row.top_logprobs) == 3 for row in logprobs.content)
    assert b"".join(bytes(row.bytes or ()) for row in logprobs.content).decode() == (
        answer.choices[0].message.content
    )
    by_id: Any = client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, max_tokens=4,
        extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    ids = [row.token for row in by_id.choices[0].logprobs.content]
    text = httpx.post(
        f"{server.url}/detokenize",
        json={"tokens": [int(name.removeprefix("token_id:")) for name in ids]},
    )
    assert text.json()["prompt"] == answer.choices[0].message.content


def test_n_and_stop(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, n=3, stop=[" is"])
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["The answer"] * 3
    assert answer.choices[0].stop_reason == " is"  # type: ignore[attr-defined]


def test_n_in_a_stream(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model=MODEL, messages=ASK, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "The answer is 42.", 1: "The answer is 42."}


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=100)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"The answer is 42."}
    streamed = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(
        model=MODEL, prompt=["a", "b"], n=2, max_tokens=100, stream=True, echo=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed[0] == streamed[1] == "aThe answer is 42."
    assert streamed[2] == streamed[3] == "bThe answer is 42."


def test_completion_defaults_to_16_tokens(client: openai.OpenAI, server: LiveServer) -> None:
    client.completions.create(model=MODEL, prompt=[5, 6, 7])
    assert server.engine.requests[-1].sampling.max_tokens == 16
    assert server.engine.requests[-1].prompt_ids == (5, 6, 7)


def test_scoring_a_prompt(client: openai.OpenAI, server: LiveServer) -> None:
    """What evaluation harnesses do: echo, logprobs, and no token generated."""
    answer = client.completions.create(
        model=MODEL, prompt="Paris is big", echo=True, logprobs=2, max_tokens=0
    )
    choice = answer.choices[0]
    ids = server.engine.requests[-1].prompt_ids
    assert choice.text == "Paris is big"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.token_logprobs) == len(ids)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "second-name"]
    assert client.models.retrieve("second-name").id == "second-name"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("a/b")
    assert caught.value.code == "model_not_found"


def test_errors_are_the_clients_own(client: openai.OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="x " * 2000)
    assert long.value.code == "context_length_exceeded"
    server.engine.refuse = overloaded()
    for is_stream in (False, True):
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(model=MODEL, messages=ASK, stream=is_stream)
        assert full.value.response.headers["retry-after"] == "3"


def test_error_in_a_stream_ends_it(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.fails_after = 3
    stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="told to die"):
        list(stream)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=ASK)
