"""Compares what a proxy makes of a failing upstream, or of a client that leaves, with what that
upstream was told to do."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from fathom.engine.timing import NoObserver
from fathom.engine.upstream.config import UpstreamConfig
from fathom.engine.upstream.engine import UpstreamEngine
from fathom.engine.upstream.failures import error_of
from fathom.engine.upstream.wire import MAX_EVENT_BYTES, EventStream
from fathom.errors import ConfigError, FathomError, OverloadedError, UpstreamError
from fathom.perf.http_stream import BrokenStream, Response
from fathom.text.tokenizer import Tokenizer
from fathom.weights.embedded import embedded_path
from tests.server.live_server import WAIT_S, LiveServer
from tests.server.proxying import (
    ASK,
    CHAT,
    FILES,
    FORM,
    TOOLS,
    FakeUpstream,
    LiveProxy,
    events,
    sse,
)
from tests.server.scripted_engine import MODEL

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


_EXCEEDED = "context_length_exceeded"
CODES = [
    ({"message": "no", "code": "unsupported_value"}, "unsupported_value"),
    ({"message": "no", "code": "schema_depth_limit"}, "schema_depth_limit"),
    ({"message": "no", "code": _EXCEEDED}, _EXCEEDED),
    ({"message": "no", "code": "content_policy_violation"}, "invalid_value"),
    ({"message": "no", "code": 400}, "invalid_value"),
    # vLLM's renderer and engine, SGLang's two checks, llama.cpp's server, DeepSeek's API
    ({"message": "This model's maximum context length is 8 tokens.", "code": 400}, _EXCEEDED),
    ({"message": "is longer than the maximum model length of 8.", "code": 400}, _EXCEEDED),
    ({"message": "is longer than the model's context length (8 tokens).", "code": 400}, _EXCEEDED),
    ({"message": "exceeds the maximum allowed length (8 tokens).", "code": 400}, _EXCEEDED),
    (
        {
            "message": "request (9 tokens) exceeds the available context size (8 tokens)",
            "type": "exceed_context_size_error",
            "code": 400,
        },
        _EXCEEDED,
    ),
    (
        {
            "message": "This model's maximum context length is 8 tokens. However, you requested 9",
            "code": "invalid_request_error",
        },
        _EXCEEDED,
    ),
]


@pytest.mark.parametrize("files", [FILES, None])
@pytest.mark.parametrize(("error", "code"), CODES)
def test_an_upstreams_code_is_told_where_it_means_the_same_with_us(
    files: str | None, error: dict[str, Any], code: str
) -> None:
    """The words are those in the servers' sources, and of reports of DeepSeek's."""
    upstream = FakeUpstream(status=400, pieces=[json.dumps({"error": error}).encode()])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=files) as proxy:
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=CHAT, timeout=WAIT_S)
        body = {"model": "fake", "max_tokens": 9, "messages": ASK}
        message = httpx.post(f"{proxy.url}/v1/messages", json=body, timeout=WAIT_S).json()["error"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    # by which agents know that they have to shorten a conversation
    assert message["message"].startswith("prompt is too long") == (code == _EXCEEDED)


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


def test_an_answer_is_over_when_its_upstream_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that said [DONE] and kept the response open was a 504 after the longest silence,
    the whole answer lost."""
    monkeypatch.setattr("fathom.engine.upstream.wire.END_TIMEOUT_S", 0.1)
    end = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    upstream = FakeUpstream(pieces=[sse(end)], hangs=True)
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions", json={"messages": ASK}, timeout=WAIT_S
        )
        assert upstream.was_left.wait(WAIT_S)
    assert answer.json()["choices"][0]["message"]["content"] == "Hi"


def test_hints_before_a_response_are_passed_over() -> None:
    end = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    upstream = FakeUpstream(pieces=[sse(end)], hints=hints)
    with upstream.running(), LiveProxy(upstream=upstream.url) as proxy:
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions", json={"messages": ASK}, timeout=WAIT_S
        )
    assert answer.json()["choices"][0]["message"]["content"] == "Hi"


def test_a_retry_after_that_is_no_number_is_a_second() -> None:
    """A superscript two is a digit by its name, and was a 500."""
    loop = asyncio.new_event_loop()
    for said in ("", "\xb2", "9" * 99, "Wed, 21 Oct 2026 07:28:00 GMT"):
        response = Response(lambda *_: None, loop.create_future(), 429, said)
        error = error_of(response)
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s == 1
    loop.close()


def test_an_event_in_tiny_pieces_takes_time_by_its_size() -> None:
    """Each piece copied all that had come before: eight MiB of them stopped the proxy for hours."""
    text = "x" * 2**19
    seen: list[bytes] = []
    stream = EventStream(seen.append)
    began_s = time.process_time()
    for byte in f"data: {text}\n".encode():
        stream.feed(bytes((byte,)), 0.0)
    assert seen == [text.encode()]
    assert time.process_time() - began_s < 10.0  # it took a minute
    with pytest.raises(BrokenStream):
        stream.feed(b"x" * (MAX_EVENT_BYTES + 1), 0.0)


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


def _scored(ids: list[int], rows: list[Any]) -> bytes:
    """An answer in one piece, as vLLM 0.32's `request_output_to_completion_response` makes it."""
    choice = {"index": 0, "text": "x", "token_ids": ids, "prompt_logprobs": rows}
    return json.dumps(
        {"choices": [{**choice, "logprobs": None, "finish_reason": "length"}]}
    ).encode()


def test_a_prompts_scores_are_read_by_token_and_missed_where_they_are_not_there() -> None:
    def score(logprob: float, rank: int) -> dict[str, Any]:
        return {"logprob": logprob, "rank": rank, "decoded_token": "?"}

    rows = [None, {"6": score(-3.0, 9), "40": score(-0.5, 1)}, {"7": score(-0.1, 1)}]
    upstream = FakeUpstream(pieces=[_scored([5], rows), b""])
    with upstream.running(), LiveProxy(upstream=upstream.url, tokenizer=FILES) as proxy:
        body = {"prompt": [5, 6, 7], "prompt_logprobs": 1, "max_tokens": 1}
        url = f"{proxy.url}/v1/completions"
        scored = httpx.post(url, json=body, timeout=WAIT_S).json()["choices"][0]
        upstream.pieces = [_scored([5], rows[:2]), b""]
        missed = httpx.post(url, json=body, timeout=WAIT_S)
    told = [
        row and {key: one["logprob"] for key, one in row.items()}
        for row in scored["prompt_logprobs"]
    ]
    assert told == [None, {"40": -0.5, "6": -3.0}, {"7": -0.1}]
    assert missed.status_code == 502
    assert "its logprobs" in missed.text
    assert not upstream.bodies[0]["stream"]
    assert "stream_options" not in upstream.bodies[0]
