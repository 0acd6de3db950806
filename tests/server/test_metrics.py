"""Compares the exposition with Prometheus' own parser, and its sums with the answers' usage."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import parser

from fathom.server.metrics import Metrics, token_buckets
from tests.server.live_server import LiveServer

# Names that vLLM's dashboards query.
NAMES = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    *("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens"),
    *("prompt_tokens_cached", "num_preemptions", "request_success"),
    *("time_to_first_token_seconds", "inter_token_latency_seconds"),
    *("request_time_per_output_token_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_prefill_time_seconds"),
    *("request_decode_time_seconds", "request_inference_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens", "request_params_n"),
    *("request_params_max_tokens", "spec_decode_num_draft_tokens"),
    *("request_max_num_generation_tokens", "request_prefill_kv_computed_tokens"),
    *("spec_decode_num_drafts", "iteration_tokens_total", "num_requests_waiting_by_reason"),
    *("spec_decode_num_accepted_tokens", "cache_config_info"),
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: LiveServer) -> tuple[Samples, set[str]]:
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(parser.text_string_to_metric_families(response.text))
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    return samples, {family.name.removeprefix("vllm:") for family in families}


def value(samples: Samples, name: str, **labels: str) -> float:
    wanted = {"model_name": "scripted", "engine": "0", **labels}
    return samples[f"vllm:{name}", frozenset(wanted.items())]


def test_every_name_is_there_and_parses(server: LiveServer) -> None:
    _, names = scrape(server)
    assert names >= NAMES


def test_sums_equal_what_the_answers_say(server: LiveServer) -> None:
    chat = f"{server.url}/v1/chat/completions"
    ask = {"messages": [{"role": "user", "content": "Hi there, tell me something"}]}
    first = httpx.post(chat, json=ask).json()["usage"]
    second = httpx.post(chat, json={**ask, "n": 2, "max_tokens": 3}).json()["usage"]
    samples, _ = scrape(server)
    generated = first["completion_tokens"] + second["completion_tokens"]
    assert value(samples, "request_generation_tokens_sum") == generated
    assert value(samples, "request_generation_tokens_count") == 3
    prompts = first["prompt_tokens"] + second["prompt_tokens"]
    assert value(samples, "request_prompt_tokens_sum") == prompts
    cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in (first, second))
    assert value(samples, "prompt_tokens_cached_total") == cached
    assert value(samples, "request_success_total", finished_reason="stop") == 1
    assert value(samples, "request_success_total", finished_reason="length") == 2
    assert value(samples, "time_to_first_token_seconds_count") == 2
    assert value(samples, "inter_token_latency_seconds_count") == generated - 3
    queued = value(samples, "request_queue_time_seconds_sum")
    inference = value(samples, "request_inference_time_seconds_sum")
    assert queued + inference == pytest.approx(value(samples, "e2e_request_latency_seconds_sum"))


def test_buckets_count_upwards(server: LiveServer) -> None:
    httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "?"}]}
    )
    samples, _ = scrape(server)
    counts = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in samples.items()
        if name == "vllm:e2e_request_latency_seconds_bucket"
    ]
    ordered = [count for _, count in sorted(counts)]
    assert ordered == sorted(ordered)
    assert ordered[-1] == 1


def test_observation_falls_into_the_first_bucket_that_holds_it() -> None:
    metrics = Metrics()
    metrics.observe("request_params_n", 2, times=3)
    metrics.observe("request_params_n", 100)
    histogram = metrics.histograms["request_params_n"]
    assert histogram.counts == [0, 3, 0, 0, 0, 1]
    assert histogram.sum == 106


def test_token_buckets() -> None:
    assert token_buckets(60) == (1, 2, 5, 10, 20, 50)


def test_metrics_before_the_engine_is_there() -> None:
    text = Metrics().render(None, None).decode()
    assert "vllm:request_success_total" in text
    assert "num_requests_running" not in text
