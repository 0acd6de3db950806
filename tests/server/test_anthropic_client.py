"""Compares what the real `anthropic` client reads with what a scripted engine was told to say, and
the prompts that its requests become with those of the same conversations in OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import CONTEXT, MODEL, call_text, overloaded

ASK: list[Any] = [{"role": "user", "content": "What is the answer?"}]
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
FUNCTION = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": TOOL["input_schema"],
    },
}
CALLS = "Let me see." + call_text(
    ("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Rome"}')
)


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as one:
        yield one


def test_text(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=50, messages=ASK)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == "The answer is 42."  # type: ignore[union-attr]
    assert (message.role, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "end_turn",
        None,
    )
    counted = client.messages.count_tokens(model=MODEL, messages=ASK)
    usage = message.usage
    assert usage.cache_read_input_tokens is not None
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert usage.output_tokens > 0


def test_whole_and_streamed_agree(client: anthropic.Anthropic, server: LiveServer) -> None:
    server.engine.answer = f"First I think.</think>{CALLS}"
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 300,
        "messages": ASK,
        "tools": [TOOL],
        "thinking": {"type": "enabled", "budget_tokens": 200},
    }
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    kinds = [block.type for block in whole.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    without_ids = [
        [block.model_dump(exclude={"id", "parsed_output"}) for block in one.content]
        for one in (whole, streamed)
    ]
    assert without_ids[0] == without_ids[1]
    assert whole.content[0].thinking == "First I think."  # type: ignore[union-attr]
    assert [block.input for block in whole.content[2:]] == [  # type: ignore[union-attr]
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert whole.usage == streamed.usage
    assert whole.usage.output_tokens_details is not None
    assert whole.usage.output_tokens_details.thinking_tokens > 0
    starts = [event.index for event in events if event.type == "content_block_start"]
    stops = [event.index for event in events if event.type == "content_block_stop"]
    assert starts == stops == [0, 1, 2, 3]
    assert whole.thinking == {"type": "enabled", "budget_tokens": 200}  # type: ignore[attr-defined]


def test_events_by_name(server: LiveServer) -> None:
    body = {"model": MODEL, "max_tokens": 50, "messages": ASK, "stream": True}
    text = httpx.post(f"{server.url}/anthropic/v1/messages", json=body).text
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event")]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}


def test_a_conversation_with_tools_is_openais(
    client: anthropic.Anthropic, server: LiveServer
) -> None:
    client.messages.create(
        model=MODEL,
        max_tokens=5,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        tools=[TOOL],  # type: ignore[list-item]
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Paris and Rome?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "P"}},
                    {"type": "tool_use", "id": "b", "name": "get_weather", "input": {"city": "R"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "sun"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "content": [{"type": "text", "text": "no such city"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    )
    ours = server.prompt()
    calls = [
        {"type": "function", "id": n, "function": {"name": "get_weather", "arguments": a}}
        for n, a in (("a", '{"city": "P"}'), ("b", '{"city": "R"}'))
    ]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        other.chat.completions.create(
            model=MODEL,
            tools=[FUNCTION],  # type: ignore[list-item]
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Paris and Rome?"},
                {"role": "assistant", "content": "Let me see.", "tool_calls": calls},  # type: ignore
                {"role": "tool", "tool_call_id": "a", "content": "sun"},
                {"role": "tool", "tool_call_id": "b", "content": "Error: no such city"},
                {"role": "user", "content": "And?"},
            ],
        )
    assert ours == server.prompt()


def test_results_out_of_order_and_calls_of_several_turns_are_told_in_order(
    client: anthropic.Anthropic, server: LiveServer
) -> None:
    """Turns of one speaker in a row are one turn, as the API says."""
    uses = [{"type": "tool_use", "id": name, "name": "add", "input": {}} for name in "ab"]
    results = [{"type": "tool_result", "tool_use_id": name, "content": name} for name in "ab"]
    prompts = []
    for turns, order in (([uses], results), ([uses[:1], uses[1:]], results[::-1])):
        said: list[Any] = [{"role": "assistant", "content": turn} for turn in turns]
        messages: Any = [*ASK, *said, {"role": "user", "content": order}]
        client.messages.create(model=MODEL, max_tokens=5, tools=[TOOL], messages=messages)
        prompts.append(server.prompt())
    assert prompts[0] == prompts[1]
    assert "a<｜tool▁output▁end｜><｜tool▁output▁begin｜>b" in prompts[0]


def test_an_answer_that_has_begun_is_gone_on_with(
    client: anthropic.Anthropic, server: LiveServer
) -> None:
    begun: list[Any] = [*ASK, {"role": "assistant", "content": "It is"}]
    client.messages.create(model=MODEL, max_tokens=5, messages=begun)
    assert server.prompt().endswith("It is")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": 10_000}, "end_turn"),
        ({"max_tokens": 50, "stop_sequences": ["answer"]}, "stop_sequence"),
    ],
)
def test_stop_reasons(client: anthropic.Anthropic, fields: Any, reason: str) -> None:
    message = client.messages.create(model=MODEL, messages=ASK, **fields)
    assert message.stop_reason == reason
    assert message.stop_sequence == ("answer" if reason == "stop_sequence" else None)


def test_the_context_may_end_first(client: anthropic.Anthropic, server: LiveServer) -> None:
    server.engine.answer = "word " * CONTEXT
    message = client.messages.create(model=MODEL, messages=ASK, max_tokens=10_000)
    assert message.stop_reason == "model_context_window_exceeded"


def test_thinking_is_signed(client: anthropic.Anthropic, server: LiveServer) -> None:
    """A coding agent took thinking without a signature for text, and sent it back as what the
    assistant had said. The API signs every block of it, in a stream right before the block's end.
    """
    server.engine.answer = "First I think.</think>Yes."
    thinking: Any = {"type": "adaptive", "display": "summarized"}
    asked: Any = {"model": MODEL, "max_tokens": 50, "messages": ASK, "thinking": thinking}
    with client.messages.stream(**asked) as stream:
        events: list[Any] = [one for one in stream if one.type.startswith("content_block")]
        streamed: Any = stream.get_final_message()
    ends = [event.type for event in events].index("content_block_stop")
    assert events[ends - 1].delta.type == "signature_delta"
    whole: Any = client.messages.create(**asked)
    for message in (whole, streamed):
        assert message.content[0].signature
        assert [text.split(":")[0] for text in message.warnings] == ["thinking.display"]
    prompts = []
    for blocks in (streamed.content, streamed.content[1:]):
        turns: list[Any] = [*ASK, {"role": "assistant", "content": blocks}, *ASK]
        client.messages.create(model=MODEL, max_tokens=5, messages=turns)
        prompts.append(server.prompt())
    assert prompts[0] == prompts[1]


def test_hidden_thinking(client: anthropic.Anthropic, server: LiveServer) -> None:
    server.engine.answer = "Hm.</think>Yes."
    thinking: Any = {"type": "adaptive", "display": "omitted"}
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": ASK, "thinking": thinking}
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (client.messages.create(**asked), streamed):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[0].thinking == ""  # type: ignore[union-attr]


def test_what_a_coding_agent_sends(client: anthropic.Anthropic, server: LiveServer) -> None:
    """An agent's system prompt begins with a line that has a checksum of the request in it: no two
    requests would share a prefix."""
    prompts = []
    for checksum in ("36ee5", "0aaa9"):
        line = f"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={checksum};"
        message = client.messages.create(
            model=MODEL,
            max_tokens=50,
            system=[
                {"type": "text", "text": line},
                {
                    "type": "text",
                    "text": "You are an agent.",
                    "cache_control": {"type": "ephemeral", "ttl": "1h"},
                },
            ],
            messages=ASK,
            tools=[{**TOOL, "eager_input_streaming": True}],  # type: ignore[list-item]
            metadata={"user_id": "somebody"},
            thinking={"type": "adaptive"},
            output_config={"effort": "high"},
            extra_headers={"anthropic-beta": "context-management-2025-06-27"},
            extra_body={
                "context_management": {
                    "edits": [{"type": "clear_thinking_20251015", "keep": "all"}]
                }
            },
        )
        prompts.append(server.prompt())
        warned = [text.split(":")[0] for text in message.warnings]  # type: ignore[attr-defined]
        assert warned == ["output_config.effort", "context_management", "system"]
    assert prompts[0] == prompts[1]
    assert "billing" not in prompts[0]
    text = httpx.get(f"{server.url}/metrics").text
    assert 'vllm:volatile_prompt_headers_total{model_name="scripted",engine="0"} 2' in text


def test_such_a_line_is_told_wherever_it_stands(client: anthropic.Anthropic) -> None:
    lines = ["Be brief.", "Be kind.", "x-anthropic-billing-header: cch=1;"]
    system: list[Any] = [{"type": "text", "text": line} for line in lines]
    counted: Any = client.messages.count_tokens(model=MODEL, messages=ASK, system=system)
    assert counted.warnings[0].startswith("system:")
    plain = client.messages.count_tokens(model=MODEL, messages=ASK, system=system[:2])
    assert plain.input_tokens == counted.input_tokens


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"zzz": 1}, "zzz"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "add"}}, "tool_choice.name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "messages[0].content[0].type"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"system": "?", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "?"},
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}]}]},
         "messages[0].content[1].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
         "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "zz": 1}]}]},
         "messages[0].content[0].zz"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": -5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2**64}}, "thinking.budget_tokens"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses"}]}}, "context_management"),
        ({"context_management": {"edits": 1}}, "context_management.edits"),
        ({"context_management": {"edits": [{"type": []}]}}, "context_management.edits[0].type"),
        ({"context_management": {"edits": [], "zz": 1}}, "context_management.zz"),
        ({"messages": [*ASK, {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a"}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]}, "messages"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_named(
    client: anthropic.Anthropic, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=MODEL, max_tokens=5, messages=ASK, extra_body=change)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"].startswith(named)


def test_a_prompt_that_is_too_long(client: anthropic.Anthropic) -> None:
    """Agents shorten a conversation when they read what Anthropic's API says, with both numbers."""
    long: list[Any] = [{"role": "user", "content": "word " * CONTEXT}]
    counted = client.messages.count_tokens(model=MODEL, messages=long)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=MODEL, max_tokens=5, messages=long)
    numbers = f"{counted.input_tokens} tokens > {CONTEXT - 1} maximum"
    body: Any = caught.value.body
    assert body["error"]["message"].startswith(f"prompt is too long: {numbers}")
    assert body["error"]["code"] == "context_length_exceeded"


def test_errors_by_status(client: anthropic.Anthropic, server: LiveServer) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 5, "messages": ASK}
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**asked, "model": "other"})
    server.engine.refuse = overloaded()
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(**asked)


def test_a_failure_in_mid_stream_is_an_event(
    client: anthropic.Anthropic, server: LiveServer
) -> None:
    server.engine.fails_after = 2
    asked: Any = {"model": MODEL, "max_tokens": 50, "messages": ASK}
    with (
        pytest.raises(anthropic.APIStatusError, match="told to die"),
        client.messages.stream(**asked) as stream,
    ):
        list(stream)


def test_models(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "second-name"]
    assert client.models.retrieve(MODEL).display_name == MODEL
