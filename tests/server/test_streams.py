"""Compares raw server-sent events and disconnects with what protocol and engine must see."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from fathom.server import generation
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import MODEL

CHAT = "/v1/chat/completions"
LONG = "word " * 60


def request_bytes(**fields: Any) -> bytes:
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "?"}], **fields}
    ).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def events_of(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part]


def test_headers_and_events(server: LiveServer) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "stream": True}
    response = httpx.post(server.url + CHAT, json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    events = events_of(response.text)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    assert all("usage" not in chunk for chunk in chunks)


def test_continuous_usage(server: LiveServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "stream": True}
    text = httpx.post(server.url + CHAT, json={**body, "stream_options": options}).text
    counts = [
        json.loads(event.removeprefix("data: "))["usage"]["completion_tokens"]
        for event in events_of(text)[:-1]
    ]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(server.engine.tokenizer.encode("The answer is 42.")) + 1


def test_token_ids(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "return_token_ids": True}
    whole = httpx.post(server.url + CHAT, json=body).json()
    assert whole["prompt_token_ids"] == list(server.engine.requests[-1].prompt_ids)
    text = httpx.post(server.url + CHAT, json={**body, "stream": True}).text
    chunks = [json.loads(event.removeprefix("data: ")) for event in events_of(text)[:-1]]
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    streamed = [i for c in chunks for choice in c["choices"] for i in choice.get("token_ids", ())]
    assert streamed == whole["choices"][0]["token_ids"]


def test_silence_is_filled_with_comments(server: LiveServer) -> None:
    """A proxy closes what is silent for a minute; the interval here is a fifth of a second."""
    server.engine.step_s = 0.5
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(request_bytes(stream=True, max_tokens=3))
        got = b""
        while b"[DONE]" not in got:
            got += raw.recv(65536)
    assert got.count(b": keep-alive\n\n") >= 2


def test_error_after_the_first_byte(server: LiveServer) -> None:
    server.engine.fails_after = 2
    body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
    response = httpx.post(server.url + CHAT, json=body)
    events = events_of(response.text)
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_error"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_queued", [False, True])
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_client_that_leaves_is_cancelled(
    server: LiveServer, is_stream: bool, is_queued: bool, is_reset: bool
) -> None:
    server.engine.answer, server.engine.step_s = LONG, 0.01
    if is_queued:
        server.engine.step_s = 100.0
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    raw.sendall(request_bytes(stream=is_stream))
    server.until(lambda: len(server.engine.running) == 1)
    if is_stream and not is_queued:
        assert raw.recv(1024)
    if is_reset:
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raw.close()
    server.until(lambda: not server.engine.running)
    assert server.engine.num_cancelled == 1
    server.until(lambda: server.state.num_active == 0)


def test_leaving_a_stream_that_was_opened_early(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role is told before the engine has said anything; then the client goes."""
    monkeypatch.setattr(generation, "ADMISSION_WAIT_S", 0.01)
    server.engine.step_s = 100.0
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(request_bytes(stream=True))
        got = b""
        while b'"role":"assistant"' not in got:
            got += raw.recv(65536)
        assert len(server.engine.running) == 1
    server.until(lambda: not server.engine.running and server.state.num_active == 0)
    assert server.engine.num_cancelled == 1


def test_64_streams_with_random_disconnects(server: LiveServer) -> None:
    """No stream is stuck, none is left running, and those that stay get everything."""
    server.engine.answer, server.engine.step_s = LONG, 0.002
    chance = random.Random(5)
    leaves = [chance.random() < 0.5 for _ in range(64)]
    patience = [chance.random() * 0.15 for _ in range(64)]
    whole: list[bool] = []

    def ask(number: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(request_bytes(stream=number % 3 != 0))
            if leaves[number]:
                threading.Event().wait(patience[number])
                return
            got = b""
            while b"[DONE]" not in got and b'"usage":{' not in got:
                chunk = raw.recv(65536)
                if not chunk:
                    return
                got += chunk
            whole.append(got.count(b"word") >= 60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert whole == [True] * leaves.count(False)
    server.until(lambda: not server.engine.running and server.state.num_active == 0)
    response = httpx.post(server.url + "/tokenize", json={"prompt": "still here"})
    assert response.status_code == 200


def test_a_slow_reader_slows_nobody(server: LiveServer) -> None:
    server.engine.answer = LONG * 40  # more than sockets hold: it cannot end unread
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.sendall(request_bytes(stream=True, n=8, return_token_ids=True))
        server.until(lambda: len(server.engine.running) == 1)
        began_s = time.monotonic()
        body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 5}
        assert httpx.post(server.url + CHAT, json=body).status_code == 200
        assert time.monotonic() - began_s < 5
    server.until(lambda: not server.engine.running)
