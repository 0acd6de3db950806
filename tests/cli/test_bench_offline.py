"""Compares `fathom bench offline`, on the embedded model, with the counts that were asked for and
with numpy's statistics of the samples that it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from fathom.commands.bench_offline import latency, main, throughput
from fathom.errors import ConfigError

ENGINE = ("--threads", "1", "--kv-cache-memory-bytes", "64MiB", "--device", "cpu")


def test_latency_of_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latency.json"
    flags = ("--batch-size", "2", "--input-len", "6", "--output-len", "4", "--num-iters", "3")
    runs = ("--num-iters-warmup", "1", "--output-json", str(path))
    assert main(["latency", *ENGINE, *flags, *runs]) == 0
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    samples = told["latencies"]
    assert len(samples) == 3
    assert told["avg_latency"] == pytest.approx(float(numpy.mean(samples)))
    for percent, value in told["percentiles"].items():
        assert value == pytest.approx(float(numpy.percentile(samples, float(percent))))
    assert list(told["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    assert told["machine"]["cores"] >= 1
    assert told["enable_prefix_caching"] is False
    assert f"Avg latency: {told['avg_latency']} seconds" in capsys.readouterr().out


def test_throughput_counts_what_was_generated(tmp_path: Path) -> None:
    path = tmp_path / "throughput.json"
    flags = ("--num-prompts", "3", "--input-len", "6", "--output-len", "4", "--n", "2")
    runs = ("--num-iters", "2", "--num-iters-warmup", "0", "--output-json", str(path))
    assert throughput([*ENGINE, *flags, *runs, "--trust-remote-code"]) == 0
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert told["num_requests"] == 3
    assert told["total_prompt_tokens"] == 18
    assert told["total_output_tokens"] == 24
    assert told["total_num_tokens"] == 42
    median_s = float(numpy.median(told["elapsed_times"]))
    assert told["elapsed_time"] == pytest.approx(median_s)
    assert told["tokens_per_second"] == pytest.approx(42 / median_s)
    assert told["requests_per_second"] == pytest.approx(3 / median_s)


def test_what_cannot_run_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match="multi_turn"):
        throughput(["--dataset-name", "multi_turn"])
    with pytest.raises(ConfigError, match="--n"):
        latency(["--n", "0"])
