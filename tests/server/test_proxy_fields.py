"""Compares which fields of a request reach an upstream, and which are refused, with what its kind
honours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from fathom.server.config import ServerConfig
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.server.live_server import WAIT_S
from tests.server.proxying import (
    ASK,
    FILES,
    FORM,
    TOOLS,
    FakeUpstream,
    LiveProxy,
    sse,
)

STRICT: list[Any] = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
OTHER: list[Any] = [{"type": "function", "function": {"name": "mul"}}]
NAMED = {"type": "function", "function": {"name": "add"}}
REFUSED: list[tuple[str | None, str, dict[str, Any], str]] = [
    (FILES, "sglang", {"thinking": True, "thinking_token_budget": 5}, "thinking_token_budget"),
    (FILES, "vllm", {"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    (FILES, "vllm", {"tools": STRICT}, "tools.function.strict"),
    (FILES, "vllm", {"thinking": True, **FORM}, "response_format.json_schema.schema"),
    (FILES, "sglang", {"tools": TOOLS, "tool_choice": NAMED}, "tool_choice"),
    (FILES, "sglang", {"allowed_token_ids": [5]}, "allowed_token_ids"),
    (FILES, "vllm", {"bad_words": ["odd"]}, "bad_words"),
    (FILES, "fathom", {"thinking": True, "ebnf": 'root ::= "a"'}, "ebnf"),
    (FILES, "sglang", {"prompt_logprobs": 1}, "prompt_logprobs"),
    (None, "vllm", {"prompt_logprobs": 1}, "prompt_logprobs"),
    (FILES, "sglang", {"logprobs": True, "top_logprobs": 2}, "logprobs"),
    (None, "vllm", {"logprobs": True}, "logprobs"),
    (None, "vllm", {"skip_special_tokens": False}, "skip_special_tokens"),
    (None, "openai", {"top_k": 5}, "top_k"),
    (None, "openai", {"thinking": True}, "thinking"),
    (None, "openai", {"priority": 1}, "priority"),
    (None, "deepseek", {"n": 2}, "n"),
    (None, "deepseek", {"seed": 1}, "seed"),
    (None, "deepseek", {"logit_bias": {"5": 1}}, "logit_bias"),
    (None, "deepseek", {"presence_penalty": 0.5}, "presence_penalty"),
    (None, "deepseek", {"frequency_penalty": 0.5}, "frequency_penalty"),
    (None, "sglang", {"add_generation_prompt": False}, "add_generation_prompt"),
    (None, "llamacpp", {"tools": [*TOOLS, *OTHER], "tool_choice": NAMED}, "tool_choice"),
    (None, "vllm", {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    (None, "vllm", {"return_token_ids": True}, "return_token_ids"),
    (None, "openai", {"continue_final_message": True}, "continue_final_message"),
    (None, "sglang", {"thinking_token_budget": 5}, "thinking_token_budget"),
    (None, "deepseek", FORM, "response_format.json_schema.schema"),
    (None, "llamacpp", {"regex": "a+"}, "regex"),
]


@pytest.mark.parametrize(("files", "owner", "more", "param"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(
    files: str | None, owner: str, more: dict[str, Any], param: str
) -> None:
    messages = [*ASK, {"role": "assistant", "content": "It"}] if "continue" in param else ASK
    upstream = FakeUpstream(owner=owner)
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions", json={"messages": messages, **more}, timeout=WAIT_S
        )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"] == "unsupported_parameter"
    assert not upstream.bodies


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/generate", {"text": "a"}),
        ("/tokenize", {"messages": ASK}),
        ("/v1/messages/count_tokens", {"model": "fake", "messages": ASK}),
        ("/flush_cache", {}),
    ],
)
def test_what_needs_a_tokenizer_is_refused_without(path: str, body: dict[str, Any]) -> None:
    upstream = FakeUpstream()
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        answer = httpx.post(proxy.url + path, json=body)
    assert answer.status_code == 400, answer.text
    assert "the upstream's" in answer.text or "--tokenizer DIR" in answer.text
    assert not upstream.bodies


BOTH = {"thinking": True, "enable_thinking": True}


@pytest.mark.parametrize(
    ("owner", "body", "sent"),
    [
        ("fathom", {"thinking": True}, {"chat_template_kwargs": BOTH}),
        ("deepseek", {"thinking": False}, {"thinking": {"type": "disabled"}}),
        ("vllm", {"top_k": 4, "min_p": 0.5, "seed": 3}, {"top_k": 4, "min_p": 0.5, "seed": 3}),
        ("vllm", {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ("vllm", {"allowed_token_ids": [5, 6]}, {"allowed_token_ids": [5, 6]}),
        ("sglang", {"ebnf": "root ::= 'a'"}, {"ebnf": "root ::= 'a'"}),
        ("openai", {"temperature": 1.0}, {"temperature": 1.0}),
        ("openai", {"stop": "x", "max_tokens": 5}, {"stop": ["x"], "max_tokens": 5}),
        ("openai", {"tools": TOOLS, "tool_choice": "required"}, {"tool_choice": "required"}),
        ("openai", {"tools": TOOLS, "tool_choice": NAMED}, {"tool_choice": NAMED}),
        ("llamacpp", {"tools": TOOLS, "tool_choice": NAMED}, {"tool_choice": "required"}),
        ("fathom", {"repetition_detection": False}, {"repetition_detection": False}),
        ("sglang", {"add_generation_prompt": True}, {"continue_final_message": False}),
    ],
)  # fmt: skip
def test_fields_reach_the_upstream_under_its_names(
    owner: str, body: dict[str, Any], sent: dict[str, Any]
) -> None:
    end = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    upstream = FakeUpstream(owner=owner, pieces=[end])
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        httpx.post(f"{proxy.url}/v1/chat/completions", json={"messages": ASK, **body})
    (got,) = upstream.bodies
    assert sent.items() <= got.items()
    assert ("temperature" in got) == ("temperature" in body)


def test_results_reach_the_upstream_in_the_order_of_their_calls() -> None:
    """Which DeepSeek's templates need there, too."""
    end = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    made = [{"id": name, "function": {"name": "add", "arguments": "{}"}} for name in "ab"]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in "ba"]
    upstream = FakeUpstream(pieces=[end])
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        messages = [*ASK, {"role": "assistant", "tool_calls": made}, *results]
        httpx.post(f"{proxy.url}/v1/chat/completions", json={"messages": messages})
    (got,) = upstream.bodies
    assert got["messages"][2:] == results[::-1]


def test_turns_in_a_row_keep_the_reasoning_of_each() -> None:
    """Anthropic's API takes them for one turn. The reasoning of all but the first was lost."""
    end = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    blocks = [
        [{"type": "thinking", "thinking": text, "signature": ""}, {"type": "text", "text": text}]
        for text in "ab"
    ]
    said = [{"role": "assistant", "content": content} for content in blocks]
    upstream = FakeUpstream(pieces=[end])
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        body = {"model": "fake", "max_tokens": 9, "messages": [*ASK, *said, *ASK]}
        httpx.post(f"{proxy.url}/v1/messages", json=body)
    (got,) = upstream.bodies
    turn = {"role": "assistant", "content": "ab", "reasoning_content": "ab"}
    assert got["messages"] == [*ASK, turn, *ASK]


def test_what_a_lenient_proxy_leaves_out_is_not_sent_on() -> None:
    end = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    upstream = FakeUpstream(pieces=[end])
    config = ServerConfig(port=0, lenient=True)
    with upstream.running(), LiveProxy(config=config, upstream=upstream.url) as proxy:
        body = {"messages": [{**ASK[0], "zzz": 1}], "zzz": 1}
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body)
    assert len(answer.json()["warnings"]) == 2
    (got,) = upstream.bodies
    assert got["messages"] == ASK


@pytest.mark.parametrize("name", ["deepseek-r1", "a file"])
def test_a_template_by_name_or_file_takes_the_place_of_the_tokenizers(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    end = sse({"choices": [{"index": 0, "text": "", "token_ids": [1], "finish_reason": "length"}]})
    upstream = FakeUpstream(pieces=[end])
    config = ServerConfig(port=0, chat_template=str(file) if name == "a file" else name)
    with (
        upstream.running(),
        LiveProxy(config=config, upstream=upstream.url, tokenizer=FILES) as proxy,
    ):
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json={"messages": ASK})
    assert answer.status_code == 200, answer.text
    (got,) = upstream.bodies
    prompt = Tokenizer.load(embedded_path()).decode(got["prompt"])
    if name == "a file":
        assert prompt.endswith(f"[{ASK[0]['content']}]")
    else:  # what DeepSeek's own template makes of it
        assert prompt.endswith(f"<｜User｜>{ASK[0]['content']}<｜Assistant｜><think>\n")
