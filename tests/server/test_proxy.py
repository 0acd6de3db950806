"""Compares a proxy with the server behind it, in every dialect and with their real clients, and
what it makes of a failing or untidy upstream with what that upstream was told to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.engine.timing import NoObserver
from fathom.engine.upstream.chat import ChatReader
from fathom.engine.upstream.config import UpstreamConfig
from fathom.engine.upstream.engine import UpstreamEngine
from fathom.engine.upstream.wire import EventStream
from fathom.errors import ConfigError, FathomError, UpstreamError
from fathom.server.config import ServerConfig
from fathom.text.delta import Delta
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.server.live_server import WAIT_S, LiveServer
from tests.server.proxying import FakeUpstream, LiveProxy, sse
from tests.server.scripted_engine import MODEL

FILES = str(embedded_path())
ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30? ☃"}]
CALL = (
    "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
    '{"a": 1, "b": "☃"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
]
DAMAGED = CALL.replace("}", "").replace("Let me", "Stray<｜tool▁call▁end｜>. Let me")
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


def told(raw: Any) -> Any:
    """What an answer says, less what differs between two answers to the same question."""
    if isinstance(raw, list):
        return [told(one) for one in raw]
    if not isinstance(raw, dict):
        return raw
    unique = ("id", "call_id", "item_id", "created", "created_at", "completed_at", "e2e_latency")
    return {
        name: told(value)
        for name, value in raw.items()
        if name not in unique and "duration" not in name
    }


def events(url: str, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream."""
    text = httpx.post(url + path, json={**body, "stream": True}, timeout=WAIT_S).text
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    return [told(json.loads(line)) for line in lines if line.startswith("{")]


def whole(url: str, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(url + path, json={**body, "stream": False}, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return told(answer.json())


CHAT: dict[str, Any] = {"messages": ASK, "temperature": 0}
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
    for url in pair:  # every stream says what the whole answer says
        assert _joined(events(url, path, body)) == _joined(events(pair[0], path, body))


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


# --- failures ----------------------------------------------------------------------------------

ERRORS = [
    (400, 400, "invalid_request_error"),
    (422, 400, "invalid_request_error"),
    (401, 502, "server_error"),
    (403, 502, "server_error"),
    (404, 502, "server_error"),
    (429, 429, "rate_limit_error"),
    (500, 502, "server_error"),
    (503, 503, "service_unavailable_error"),
    (504, 504, "server_error"),
]
WAYS = {
    "tokens": (FILES, "/v1/chat/completions", {"messages": ASK}),
    "conversations": (None, "/v1/chat/completions", {"messages": ASK}),
    "anthropic": (None, "/v1/messages", {"model": "fake", "max_tokens": 9, "messages": ASK}),
    "ollama": (None, "/api/chat", {"model": "fake", "messages": ASK}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("status", "wanted", "kind"), ERRORS)
def test_an_upstreams_error_is_told_in_the_dialects_form(
    way: str, status: int, wanted: int, kind: str
) -> None:
    files, path, body = WAYS[way]
    why = json.dumps({"error": {"message": "no such luck", "param": "top_p"}}).encode()
    upstream = FakeUpstream(status=status, headers={"Retry-After": "7"}, pieces=[why])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        answer = httpx.post(proxy.url + path, json=body, timeout=WAIT_S)
    assert answer.status_code == wanted
    assert "no such luck" in answer.text
    assert len(upstream.bodies) == 1  # nothing is asked twice
    if status == 429:
        assert answer.headers["retry-after"] == "7"
    error = answer.json()["error"]
    if way == "ollama":
        assert isinstance(error, str)
    elif way == "anthropic":
        assert answer.json()["type"] == "error"
    else:
        assert error["type"] == kind
        assert error["param"] == ("top_p" if wanted == 400 else None)


def test_an_upstreams_error_about_a_form_names_the_field_that_was_sent() -> None:
    why = {"error": {"message": "no such form", "param": "structured_outputs.grammar"}}
    upstream = FakeUpstream(status=400, pieces=[json.dumps(why).encode()], owner="fathom")
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=FILES) as proxy:
        url = f"{proxy.url}/v1/chat/completions"
        params = []
        for more in ({"thinking": True, **FORM}, {"tools": TOOLS, "tool_choice": "required"}):
            answer = httpx.post(url, json={"messages": ASK, **more}, timeout=WAIT_S)
            params.append(answer.json()["error"]["param"])
    assert params == ["response_format.json_schema.schema", "tools"]
    assert all("grammar" in body["structured_outputs"] for body in upstream.bodies)


def test_a_key_for_the_upstream_is_not_the_clients_key() -> None:
    upstream = FakeUpstream(pieces=[sse({"choices": [{"delta": {}, "finish_reason": "stop"}]})])
    with upstream.running(), LiveProxy(upstream=upstream.url, key="secret") as proxy:
        httpx.post(
            f"{proxy.url}/v1/chat/completions",
            json={"messages": ASK},
            headers={"Authorization": "Bearer mine"},
        )
    assert all("authorization: bearer secret\r\n" in head.lower() for head in upstream.heads)
    assert not any("mine" in head for head in upstream.heads)


def test_an_upstream_that_loads_is_waited_for() -> None:
    upstream = FakeUpstream(is_slow=True)
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        assert httpx.get(f"{proxy.url}/readyz").status_code == 200
    assert len(upstream.heads) == 2


@pytest.mark.parametrize(
    ("fake", "asked", "kind"),
    [
        ({"models_status": 401}, {}, UpstreamError),
        ({"models_status": 500}, {}, UpstreamError),
        ({"owner": "llamacpp"}, {"tokenizer": FILES}, ConfigError),
        ({}, {"model": "another"}, ConfigError),
    ],
)
def test_what_keeps_a_proxy_from_starting(
    fake: dict[str, Any], asked: dict[str, Any], kind: type[FathomError]
) -> None:
    async def start(url: str) -> None:
        config = UpstreamConfig(upstream=url, **asked)
        engine = await UpstreamEngine.start(config, None, NoObserver())
        try:
            with pytest.raises(kind):
                await engine.ready()
            assert isinstance(engine.failure, kind)
        finally:
            await engine.close()

    with FakeUpstream(**fake).running() as upstream:
        asyncio.run(start(upstream.url))


def test_an_upstream_that_went_away_is_not_available() -> None:
    upstream = FakeUpstream()
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        pass
    with upstream.running():
        proxy = LiveProxy(upstream=upstream.url)
        proxy.__enter__()
    answer = httpx.post(f"{proxy.url}/v1/chat/completions", json={"messages": ASK}, timeout=WAIT_S)
    proxy.__exit__()
    assert answer.status_code == 503
    assert "cannot be reached" in answer.json()["error"]["message"]


HALF = b'data: {"choices": [{"index": 0, "text": "It", "token_ids": [5]}]}\n\n'
HALF_CHAT = b'data: {"choices": [{"index": 0, "delta": {"content": "It"}}]}\n\n'


@pytest.mark.parametrize(("files", "half"), [(FILES, HALF), (None, HALF_CHAT)])
@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"data: [DONE]\n\n",
        b"data: {broken\n\n",
        b'data: {"error": {"message": "out of memory"}}\n\n',
        b'data: {"choices": [{"index": 9}]}\n\n',
        b'data: {"choices": [{"index": 0, "finish_reason": "content_filter"}]}\n\n',
        b"data: \xff\n\n",
    ],
)
def test_an_answer_that_breaks_off_ends_with_an_error(
    files: str | None, half: bytes, rest: bytes
) -> None:
    upstream = FakeUpstream(pieces=[half, rest] if rest else [half])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        told_events = events(proxy.url, "/v1/chat/completions", {"messages": ASK})
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions", json={"messages": ASK}, timeout=WAIT_S
        )
    assert "upstream" in told_events[-1]["error"]["message"]
    assert told_events[-1]["error"]["code"] == "upstream_error"
    assert answer.status_code == 502
    assert len(upstream.bodies) == 2


@pytest.mark.parametrize("limit", ["silence_timeout_s", "request_timeout_s"])
@pytest.mark.parametrize("files", [FILES, None])
def test_silence_has_a_deadline(files: str | None, limit: str) -> None:
    """Comments that fill the silence do not count."""
    upstream = FakeUpstream(pieces=[b": still here\n\n"], hangs=True)
    more: Any = {limit: 0.2}
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files, **more) as proxy:
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions", json={"messages": ASK}, timeout=WAIT_S
        )
        assert upstream.was_left.wait(WAIT_S)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize(("files", "half"), [(FILES, HALF), (None, HALF_CHAT)])
def test_a_client_that_leaves_is_gone_upstream_too(files: str | None, half: bytes) -> None:
    upstream = FakeUpstream(pieces=[half], hangs=True)
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        body = {"messages": ASK, "stream": True}
        with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
        assert upstream.was_left.wait(WAIT_S)
        proxy.until(lambda: proxy.engine.stats.running == 0)


def test_a_stop_string_ends_the_upstreams_request() -> None:
    text = "word"
    ids = Tokenizer.load(embedded_path()).encode(text)
    stop = {"choices": [{"index": 0, "text": text, "token_ids": ids}]}
    upstream = FakeUpstream(pieces=[b"data: " + json.dumps(stop).encode() + b"\n\n"], hangs=True)
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=FILES) as proxy:
        body = {"prompt": "a", "stop": [text], "max_tokens": 9}
        answer = httpx.post(f"{proxy.url}/v1/completions", json=body, timeout=WAIT_S).json()
        assert upstream.was_left.wait(WAIT_S)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == text
    assert "stop" not in upstream.bodies[0]


LOOP = "It is " + "na " * 200


@pytest.mark.parametrize("files", [FILES, None], ids=["tokens", "conversations"])
def test_an_answer_that_loops_is_ended_here_and_upstream(files: str | None) -> None:
    """The scripted server has no guard of its own."""
    with (
        LiveServer(answer=LOOP) as server,
        LiveProxy(upstream=server.url, tokenizer=files, loop_guard_tokens=64) as proxy,
    ):
        url = f"{proxy.url}/v1/chat/completions"
        looped = httpx.post(url, json=CHAT, timeout=WAIT_S).json()["choices"][0]
        server.until(lambda: server.engine.num_cancelled == 1)
        streamed = events(proxy.url, "/v1/chat/completions", CHAT)
        body = {"model": MODEL, "max_tokens": 400, "messages": ASK}
        message = httpx.post(f"{proxy.url}/v1/messages", json=body, timeout=WAIT_S).json()
        allowed = httpx.post(url, json={**CHAT, "repetition_detection": False}, timeout=WAIT_S)
    assert looped["finish_reason"] == "repetition"
    assert message["stop_reason"] == "max_tokens"
    assert LOOP.startswith(looped["message"]["content"])
    assert 64 < len(looped["message"]["content"]) < 400
    assert streamed[-1]["choices"][0]["finish_reason"] == "repetition"
    assert allowed.json()["choices"][0]["message"]["content"] == LOOP


@pytest.mark.parametrize("files", [FILES, None], ids=["tokens", "conversations"])
def test_the_guard_ends_one_choice_and_the_other_goes_on(files: str | None) -> None:
    ids = Tokenizer.load(embedded_path()).encode("na ")
    piece = {"text": "na ", "token_ids": ids} if files else {"delta": {"content": "na "}}
    other = {"text": "a", "token_ids": ids[:1]} if files else {"delta": {"content": "a"}}
    pieces = [sse({"choices": [{"index": 0, **piece}]}).replace(b"data: [DONE]\n\n", b"")] * 200
    ends = [{"choices": [{"index": 1, **other, "finish_reason": "stop"}]}]
    upstream = FakeUpstream(pieces=[*pieces, sse(*ends)])
    with (
        upstream.running(),
        LiveProxy(upstream=upstream.url, tokenizer=files, loop_guard_tokens=64) as proxy,
    ):
        body = {"messages": ASK, "n": 2}
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=WAIT_S).json()
    reasons = [choice["finish_reason"] for choice in answer["choices"]]
    assert reasons == ["repetition", "stop"], answer


def test_a_budget_that_the_upstream_ignores_is_told() -> None:
    ids = Tokenizer.load(embedded_path()).encode("one two three four")
    event = {"choices": [{"index": 0, "text": "x", "token_ids": ids, "finish_reason": "length"}]}
    upstream = FakeUpstream(pieces=[sse(event)])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=FILES) as proxy:
        body = {"messages": ASK, "thinking": {"type": "enabled", "budget_tokens": 2}}
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=WAIT_S)
        kept = {**body, "thinking": {"type": "enabled", "budget_tokens": len(ids)}}
        fine = httpx.post(f"{proxy.url}/v1/chat/completions", json=kept, timeout=WAIT_S)
    assert upstream.bodies[0]["thinking_token_budget"] == 2
    assert answer.status_code == 502
    assert "thinking_token_budget" in answer.text
    assert fine.status_code == 200


# --- what is refused ---------------------------------------------------------------------------

FORM = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}
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
    (FILES, "vllm", {"prompt_logprobs": 1}, "prompt_logprobs"),
    (FILES, "sglang", {"logprobs": True}, "logprobs"),
    (None, "vllm", {"logprobs": True}, "logprobs"),
    (None, "vllm", {"skip_special_tokens": False}, "skip_special_tokens"),
    (None, "openai", {"top_k": 5}, "top_k"),
    (None, "openai", {"thinking": True}, "thinking"),
    (None, "openai", {"priority": 1}, "priority"),
    (None, "deepseek", {"n": 2}, "n"),
    (None, "deepseek", {"seed": 1}, "seed"),
    (None, "deepseek", {"logit_bias": {"5": 1}}, "logit_bias"),
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


# --- untidy answers ----------------------------------------------------------------------------

CALLS = CALL.removeprefix("Let me see.")
FENCED = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
# What an upstream writes as content: reasoning, text and calls that are in it.
LEAKS: list[tuple[str, str, str, list[str]]] = [
    ("plain", "", "plain", []),
    ("<think>\nWhy?\n</think>\n\nSo.", "Why?", "So.", []),
    ("\n <think>Why ☃?</think>So.", "Why ☃?", "So.", []),
    ("<think>never closed", "never closed", "", []),
    ("Say <think> and </think>.", "", "Say <think> and </think>.", []),
    ("<thin", "", "<thin", []),
    (f"See.{CALLS}", "", "See.", ['{"a": 1, "b": "☃"}']),
    (f"<think>a</think>{CALLS}", "a", "", ['{"a": 1, "b": "☃"}']),
    (FENCED, "", "", ['{"a": 1}']),
    ("<｜tool▁call", "", "<｜tool▁call", []),
]


@pytest.mark.parametrize(("text", "reasoning", "answer", "calls"), LEAKS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.data())
def test_leaked_markup_is_parted_however_the_stream_is_cut(
    text: str, reasoning: str, answer: str, calls: list[str], cuts: st.DataObject
) -> None:
    pieces = _cut(text, cuts)
    raw = sse(
        *({"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ).replace(b"\n", cuts.draw(st.sampled_from([b"\n", b"\r\n"])))
    deltas: list[Delta] = []
    reader = ChatReader("x", 1, True, deltas.append)
    stream = EventStream(reader.event)
    for part in _cut(raw, cuts):
        stream.feed(part, 0.0)
    reader.finish()
    assert "".join(delta.text for delta in deltas) == answer
    assert "".join(delta.reasoning for delta in deltas) == reasoning
    found = [call for delta in deltas for call in delta.tool_calls]
    told_calls = ["".join(c.arguments for c in found if c.index == i) for i in range(len(calls))]
    assert told_calls == calls
    assert {c.index for c in found} == set(range(len(calls)))
    assert deltas[-1].finish_reason == ("tool_calls" if calls else "stop")


def _cut(whole_text: Any, cuts: st.DataObject) -> list[Any]:
    places = sorted(cuts.draw(st.sets(st.integers(0, len(whole_text)), max_size=12)))
    bounds = zip([0, *places], [*places, len(whole_text)], strict=True)
    return [whole_text[start:end] for start, end in bounds]


def test_what_the_upstream_parted_stays_as_it_is() -> None:
    """After reasoning of its own, `<think>` is a word; its calls and ours are numbered together."""
    deltas: list[Delta] = []
    reader = ChatReader("x", 1, True, deltas.append)
    stream = EventStream(reader.event)
    call: Callable[..., Any] = lambda **more: {"delta": {"tool_calls": [{"index": 0, **more}]}}  # noqa: E731
    usage = {"prompt_tokens": 7, "completion_tokens": 30, "prompt_cache_hit_tokens": 4}
    stream.feed(
        sse(
            {"choices": [{"delta": {"reasoning": "Hm."}}]},
            {"choices": [{"delta": {"content": "<think>"}}]},
            {"choices": [call(id="c1", function={"name": "mul", "arguments": ""})]},
            {"choices": [call(function={"arguments": "{}"})]},
            {"choices": [{"delta": {"content": CALLS}}]},
            {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
            {"choices": [], "usage": usage},
        ),
        0.0,
    )
    reader.finish()
    assert "".join(delta.text for delta in deltas) == "<think>"
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    names = {c.index: c.name for delta in deltas for c in delta.tool_calls if c.name}
    assert names == {0: "mul", 1: "add"}
    last = deltas[-1]
    assert (last.num_prompt, last.num_tokens, last.num_cached) == (7, 30, 4)
