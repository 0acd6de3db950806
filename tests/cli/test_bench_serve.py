"""Compares what `fathom bench serve` prints, saves and exits with, with a scripted server's own
record; and the keys of the file with those that readers of vLLM's results look for."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.sse_server import Script, start, stop
from fathom.commands.bench_serve import main
from fathom.errors import ConfigError, UnavailableError
from fathom.weights.embedded import embedded_path

WAIT_S = 20.0
# How much later than it was written a busy machine may see a piece.
LATE_S = 0.5
# Source: `benchmark` in vLLM's benchmarks/serve.py, and what its main adds.
VLLMS_KEYS = """
date backend label model_id tokenizer_id num_prompts request_rate burstiness max_concurrency
duration completed failed total_input_tokens total_output_tokens request_throughput
request_goodput output_throughput total_token_throughput max_output_tokens_per_s
max_concurrent_requests mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms mean_tpot_ms
median_tpot_ms std_tpot_ms p99_tpot_ms mean_itl_ms median_itl_ms std_itl_ms p99_itl_ms
""".split()  # noqa: SIM905
VLLMS_DETAILS = """
input_lens output_lens ttfts itls generated_texts errors start_times
""".split()  # noqa: SIM905


@contextmanager
def serving(script: Script) -> Iterator[int]:
    """A server in a thread of its own; gives its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server, port = asyncio.run_coroutine_threadsafe(start(script), loop).result(WAIT_S)
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(stop(server, script), loop).result(WAIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_S)
        loop.close()


def arguments(port: int, *more: str) -> list[str]:
    return [
        *("--port", str(port), "--tokenizer", str(embedded_path()), "--request-timeout", "20"),
        *("--num-prompts", "6", "--random-input-len", "5", "--random-output-len", "4", *more),
    ]


def saved(tmp_path: Path, script: Script, *more: str, code: int = 0) -> dict[str, Any]:
    with serving(script) as port:
        flags = ("--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json")
        assert main(arguments(port, *flags, *more)) == code
    told: dict[str, Any] = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    return told


def test_results_agree_with_the_servers_own_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(first_s=0.02, gap_s=0.01)
    told = saved(tmp_path, script, "--save-detailed", "--request-rate", "50", "--ignore-eos")
    assert set(VLLMS_KEYS) | set(VLLMS_DETAILS) <= told.keys()
    assert (told["completed"], told["failed"]) == (6, 0)
    assert told["total_output_tokens"] == 24
    assert told["total_input_tokens"] == 42  # as the server counts
    assert told["model_id"] == "scripted"
    assert told["output_throughput"] == pytest.approx(24 / told["duration"])
    assert min(told["ttfts"]) >= 0.02
    indices = [int(one["x-request-id"].rpartition("-")[2]) for one in script.headers]
    assert sorted(indices) == list(range(6))
    for index, written_s in zip(indices, script.written_s, strict=True):
        gaps = told["itls"][index]
        assert len(gaps) == len(written_s) - 1 == 3
        assert sum(gaps) == pytest.approx(written_s[-1] - written_s[0], abs=LATE_S)
    assert told["latency_counted_from"] == "intended arrival"
    assert all(len(body["prompt"]) == 5 for body in script.bodies)
    assert all(body["ignore_eos"] for body in script.bodies)
    shown = capsys.readouterr().out
    assert "Successful requests:                     6" in shown
    assert f"P99 TTFT (ms):                           {told['p99_ttft_ms']:.2f}" in shown


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    first, second, third = Script(), Script(), Script()
    one = saved(tmp_path, first, "--seed", "3")
    two = saved(tmp_path, second, "--seed", "3")
    other = saved(tmp_path, third, "--seed", "4")
    assert one["workload_sha256"] == two["workload_sha256"] != other["workload_sha256"]
    key = json.dumps
    assert sorted(map(key, first.bodies)) == sorted(map(key, second.bodies))
    assert sorted(map(key, first.bodies)) != sorted(map(key, third.bodies))


def test_warm_ups_are_other_prompts_and_not_counted(tmp_path: Path) -> None:
    script = Script()
    told = saved(tmp_path, script, "--num-warmups", "2", "--ready-check-timeout-sec", "10")
    assert told["completed"] == 6
    assert len(script.bodies) == 9  # one that asks whether it is ready, two to warm up
    prompts = [tuple(body["prompt"]) for body in script.bodies]
    assert prompts[0] in prompts[1:3]
    assert not set(prompts[:3]) & set(prompts[3:])
    assert script.bodies[0]["max_tokens"] == 1


def test_failures_are_counted_shown_and_exited_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = saved(tmp_path, Script(refuse_first=2, status=429), "--max-concurrency", "1", code=1)
    assert (told["completed"], told["failed"]) == (4, 2)
    assert told["errors_by_kind"] == {"HTTP 429": {"count": 2, "first": "told to say 429"}}
    assert "2 failed: HTTP 429" in capsys.readouterr().out
    assert told["is_closed_loop"]


def test_chat_asks_with_messages(tmp_path: Path) -> None:
    script = Script()
    told = saved(tmp_path, script, "--backend", "openai-chat", "--max-concurrency", "2")
    assert told["completed"] == 6
    assert all(isinstance(body["messages"][0]["content"], str) for body in script.bodies)
    assert told["max_concurrent_requests"] == 2


def test_a_file_of_prompts_and_lines_of_results(tmp_path: Path) -> None:
    lines = [{"prompt": f"question {number}", "output_tokens": number} for number in (1, 2, 3)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    script = Script()
    flags = ["--dataset-name", "custom", "--dataset-path", str(path), "--custom-output-len", "-1"]
    common = ["--tokenizer", str(embedded_path()), "--num-prompts", "3", *flags]
    with serving(script) as port:
        results = ["--append-result", "--result-dir", str(tmp_path), "--result-filename", "r.jsonl"]
        for _ in range(2):
            assert main(["--port", str(port), *common, *results, "--metadata", "tp=1"]) == 0
    asked = sorted((body["prompt"], body["max_tokens"]) for body in script.bodies)
    assert asked == sorted([(f"question {n}", n) for n in (1, 2, 3)] * 2)
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["total_output_tokens"] for row in rows] == [6, 6]
    assert rows[0]["tp"] == "1"


@pytest.mark.parametrize("text", ["{", "[]", '{"prompt": 3}', ""])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    model = ("--model", str(embedded_path()))
    with pytest.raises(ConfigError, match="--dataset-path"):
        main([*model, "--dataset-name", "custom", "--dataset-path", str(path)])


def test_a_server_that_is_not_there_is_said_within_the_deadline() -> None:
    with serving(Script()) as port:
        pass
    with pytest.raises(UnavailableError):
        main(arguments(port, "--ready-check-timeout-sec", "0.6"))


def test_a_server_that_refuses_is_not_waited_for() -> None:
    with (
        serving(Script(refuse_first=99, status=400)) as port,
        pytest.raises(UnavailableError, match="as it should"),
    ):
        main(arguments(port, "--ready-check-timeout-sec", "600"))
    with (
        serving(Script(refuse_first=99, status=400)) as port,
        pytest.raises(UnavailableError, match="no warm-up"),
    ):
        main(arguments(port, "--num-warmups", "2"))


@pytest.mark.parametrize(
    ("flags", "num_asked", "num_sent"),
    [((), 6, 6), (("--ready-check-timeout-sec", "60"), 1, 0), (("--num-warmups", "2"), 2, 0)],
    ids=["measuring", "waiting", "warming"],
)
def test_an_interrupted_run_keeps_its_results(
    flags: tuple[str, ...], num_asked: int, num_sent: int, tmp_path: Path
) -> None:
    script = Script(first_s=60.0)
    with serving(script) as port:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fathom.cli", "bench", "serve", *arguments(port, *flags)),
                *("--save-result", "--result-filename", str(tmp_path / "r.json")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline_s = time.monotonic() + WAIT_S
            while len(script.bodies) < num_asked:
                assert process.poll() is None, process.communicate(timeout=WAIT_S)
                assert time.monotonic() < deadline_s
                threading.Event().wait(0.01)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert ("6 failed: interrupted" in out) == bool(num_sent)
    assert f"note: interrupted: {num_sent} of 6 requests were sent" in errors
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["is_interrupted"]
