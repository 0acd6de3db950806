"""Compares the whole server, on the embedded model, with itself (whole, streamed, alone, in a
crowd) and its page pool with an empty one after clients have left."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.processes import WAIT_S, Server, serving

# How late a busy machine may see what a server has done.
LATE_S = 0.5
ASK = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Without prefix cache, so that a pool that nobody uses is empty."""
    with serving("--no-enable-prefix-caching") as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_whole_and_streamed_agree(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    for temperature in (0.0, 1.0):
        asked: dict[str, Any] = {
            "model": model, "messages": ASK, "temperature": temperature, "seed": 5, "max_tokens": 24
        }  # fmt: skip
        whole = client.chat.completions.create(**asked).choices[0]
        chunks = list(client.chat.completions.create(**asked, stream=True))  # type: ignore
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == (whole.message.content or "")
        assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_same_seed_same_answer_in_a_crowd(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id

    def ask(seed: int) -> list[str]:
        answer = client.completions.create(
            model=model, prompt="The answer", seed=seed, max_tokens=12, temperature=1.0
        )
        return [choice.text for choice in answer.choices]

    alone = ask(11)
    crowd: list[list[str]] = []
    threads = [threading.Thread(target=lambda: crowd.append(ask(11))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert crowd == [alone] * 6


def test_logprobs_n_and_stop(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=ASK, n=2, max_tokens=6, logprobs=True, top_logprobs=3, temperature=0
    )
    first, second = answer.choices
    assert first.message.content == second.message.content
    assert first.logprobs is not None
    assert first.logprobs.content is not None
    for row in first.logprobs.content:
        assert row.logprob <= 0
        assert row.top_logprobs[0].logprob >= row.top_logprobs[-1].logprob
        assert row.top_logprobs[0].token == row.token
    stopped = client.completions.create(
        model=model, prompt="Count: 1, 2, 3,", max_tokens=20, temperature=0, stop=[",", "."]
    )
    assert "," not in stopped.choices[0].text


def test_scoring_equals_generating(client: openai.OpenAI) -> None:
    """The log-probabilities of an answer are those of the same text as a prompt."""
    model = client.models.list().data[0].id
    body = {"return_token_ids": True}
    wrote = client.completions.create(
        model=model, prompt=[5, 6, 7], max_tokens=8, temperature=1, seed=3, logprobs=1,
        extra_body={**body, "ignore_eos": True},
    )  # fmt: skip
    ids = [5, 6, 7, *wrote.choices[0].token_ids]  # type: ignore[attr-defined]
    read = client.completions.create(model=model, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    written, scored = wrote.choices[0].logprobs, read.choices[0].logprobs
    assert written is not None
    assert scored is not None
    assert written.token_logprobs == pytest.approx((scored.token_logprobs or [])[3:], abs=1e-3)


def request_bytes(body: dict[str, Any]) -> bytes:
    raw = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


@pytest.mark.parametrize("is_stream", [False, True])
def test_pages_of_a_client_that_leaves_come_back(server: Server, is_stream: bool) -> None:
    body = {"messages": ASK, "max_tokens": 4000, "ignore_eos": True, "stream": is_stream}
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(request_bytes(body))
        server.until(lambda: server.gauge("kv_cache_usage_perc") > 0)
    # A step is tens of milliseconds; a scrape is one too.
    server.until(server.is_empty, timeout_s=3.0)


def test_64_streams_with_random_disconnects(server: Server) -> None:
    """No page is lost, no stream is stuck, and those that stay get a whole answer."""
    chance = random.Random(7)
    plans = [(chance.random() < 0.6, chance.random() * 2, number) for number in range(64)]
    ends: list[bool] = []

    def ask(leaves: bool, patience_s: float, number: int) -> None:
        is_stream = number % 4 != 0
        body = {
            "messages": [{"role": "user", "content": f"Question {number}: " + "why? " * number}],
            "max_tokens": 8 if not leaves else 2000,
            "stream": is_stream,
            "ignore_eos": True,
        }
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as raw:
            raw.sendall(request_bytes(body))
            if leaves:
                threading.Event().wait(patience_s)
                return
            got = b""
            while b"[DONE]" not in got and b'"usage":{' not in got:
                chunk = raw.recv(65536)
                assert chunk, got
                got += chunk
            ends.append(b'"finish_reason":"length"' in got)

    threads = [threading.Thread(target=ask, args=plan) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert ends == [True] * sum(not leaves for leaves, _, _ in plans)
    server.until(server.is_empty)


def test_bad_input_leaves_the_real_engine_unharmed(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=WAIT_S) as http:
        chat = "/v1/chat/completions"
        json_header = {"content-type": "application/json"}
        assert http.post(chat, json={"messages": ASK, "n": 10**6}).status_code == 400
        long = http.post("/v1/completions", json={"prompt": "why? " * 20_000})
        assert long.json()["error"]["code"] == "context_length_exceeded"
        assert http.post(chat, content=b" " * 100_000_000, headers=json_header).status_code == 413
        assert http.post(chat, content=b'{"a": "\xff"', headers=json_header).status_code == 400
        assert http.post(chat, json={"messages": ASK, "max_tokens": 3}).status_code == 200


def _engine_pid(server: Server) -> int:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    for child in children.split():
        if b"fathom.engine" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("no engine process")


def _ask_twice(server: Server) -> None:
    """What was computed for the first is found for the second, and said in every form."""
    body = {"prompt": "why? " * 100, "max_tokens": 2, "temperature": 0}
    url = f"{server.url}/v1/completions"
    usages = [httpx.post(url, json=body, timeout=WAIT_S).json()["usage"] for _ in range(2)]
    cached = [one["prompt_tokens_details"]["cached_tokens"] for one in usages]
    assert cached[0] == 0
    assert 0 < cached[1] == usages[1]["prompt_cache_hit_tokens"] < usages[1]["prompt_tokens"]
    assert server.gauge("prefix_cache_hits_total") == cached[1]


def test_the_end_by_signal_and_by_accident() -> None:
    """SIGTERM: exit 0, nothing left. An engine that is killed: told to streams, exit 6."""
    with serving() as server:
        _ask_twice(server)
        pid = _engine_pid(server)
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate(timeout=WAIT_S)
        assert server.process.returncode == 0
        assert not Path(f"/proc/{pid}").exists()
    with serving() as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(WAIT_S)
        body = {"messages": ASK, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        raw.sendall(request_bytes(body))
        assert b"200 OK" in raw.recv(65536)
        os.kill(_engine_pid(server), signal.SIGKILL)
        got = b""
        while chunk := raw.recv(65536):
            got += chunk
        assert b'data: {"error":' in got
        assert b"[DONE]" not in got
        _, told = server.process.communicate(timeout=WAIT_S)
        assert server.process.returncode == 6
        assert "engine" in told


def test_the_benchmark_of_the_served_model(server: Server, tmp_path: Path) -> None:
    """Without a tokenizer's files: the client asks the server for tokens. What it counts is what
    the server's own counters count."""

    def counters() -> tuple[float, ...]:
        names = ("prompt_tokens_total", "generation_tokens_total")
        sums = ("time_to_first_token_seconds_sum", "e2e_request_latency_seconds_sum")
        return tuple(server.gauge(name) for name in (*names, *sums))

    before = counters()
    path = tmp_path / "result.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fathom.cli", "bench", "serve", "--base-url", server.url),
            *("--num-prompts", "8", "--request-rate", "20", "--random-input-len", "12"),
            *("--random-output-len", "6", "--random-range-ratio", "0.5", "--ignore-eos"),
            *("--save-result", "--save-detailed", "--result-filename", str(path)),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["completed"] == 8
    assert all(6 <= one <= 18 for one in told["input_lens"])
    assert all(3 <= one <= 9 for one in told["output_lens"])
    prompt, generated, first_s, whole_s = (
        after - one for after, one in zip(counters(), before, strict=True)
    )
    assert (prompt, generated) == (told["total_input_tokens"], told["total_output_tokens"])
    # The server's own clocks began later and ended earlier, by what the network and the schedule
    # took: little, here.
    assert 0 <= sum(told["ttfts"]) - first_s < 8 * LATE_S
    assert 0 <= sum(told["latencies"]) - whole_s < 8 * LATE_S
    server.until(server.is_empty)
